// Products with weights in blocks with AVX-512 VNNI, in registers of 256 bits, of which there are 32.
#include "backend/cpu/kernels/blocks_avx2_inl.h"

namespace {

struct Dot {
  static constexpr bool kWide = true;
  static constexpr int kMost = 10;
  static __m256i add(__m256i sum, __m256i u, __m256i q) { return _mm256_dpbusd_epi32(sum, u, q); }
  template <bool kSteps>
  static __m256i sum(__m256i part, __m256i step) {
    return kSteps ? _mm256_mullo_epi32(part, _mm256_srai_epi32(step, 16)) : part;
  }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kAvx512VnniBlockKernels = {gemm<Avx2Blocks<Dot>>, pack_blocks, values_of<Avx2Blocks<Dot>>};
}
