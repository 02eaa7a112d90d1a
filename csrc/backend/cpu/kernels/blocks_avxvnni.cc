// Products with weights in blocks with AVX-VNNI: vpdpbusd of 256 bits.
#include "backend/cpu/kernels/blocks_avx2_inl.h"

namespace {

struct Dot {
  static constexpr bool kWide = true;
  static constexpr int kMost = 5;
  static __m256i add(__m256i sum, __m256i u, __m256i q) { return _mm256_dpbusd_avx_epi32(sum, u, q); }
  template <bool kSteps>
  static __m256i sum(__m256i part, __m256i step) {
    return kSteps ? _mm256_mullo_epi32(part, _mm256_srai_epi32(step, 16)) : part;
  }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kAvxVnniBlockKernels = {gemm<Avx2Blocks<Dot>>, pack_blocks, values_of<Avx2Blocks<Dot>>};
}
