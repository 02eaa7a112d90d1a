// Products with weights in blocks with AVX2.
#include "backend/cpu/kernels/blocks_avx2_inl.h"

namespace {

struct Dot {
  static __m256i fours(__m256i u, __m256i q) { return _mm256_madd_epi16(_mm256_maddubs_epi16(u, q), _mm256_set1_epi16(1)); }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kAvx2BlockKernels = {gemm<Avx2Blocks<Dot>>, pack_blocks, values_of<Avx2Blocks<Dot>>,
                                        decode_rows<Avx2Blocks<Dot>>};
}
