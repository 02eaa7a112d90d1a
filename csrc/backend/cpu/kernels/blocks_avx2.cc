// Products with weights in blocks with AVX2.
#include "backend/cpu/kernels/blocks_avx2_inl.h"

namespace {

struct Dot {
  using Registers = Ymm;
  static constexpr bool kWide = false;
  static constexpr int kMost = 5;
  static __m256i add(__m256i sum, __m256i u, __m256i q) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, q)); }
  static __m256i add_signed(__m256i sum, __m256i c, __m256i q) { return add(sum, _mm256_abs_epi8(c), _mm256_sign_epi8(q, c)); }
  template <bool kSteps>
  static __m256i sum(__m256i part, __m256i step) {
    return _mm256_madd_epi16(part, step);
  }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kAvx2BlockKernels = {gemm<Avx2Blocks<Dot>>, pack_blocks, values_of<Avx2Blocks<Dot>>,
                                        decode_rows<Avx2Blocks<Dot>>};
}
