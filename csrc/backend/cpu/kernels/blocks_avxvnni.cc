// Products with weights in blocks with AVX-VNNI: vpdpbusd of 256 bits.
#include "backend/cpu/kernels/blocks_avx2_inl.h"

namespace {

struct Dot : WideDot<Ymm> {
  static constexpr int kMost = 5;
  static __m256i add(__m256i sum, __m256i u, __m256i q) { return _mm256_dpbusd_avx_epi32(sum, u, q); }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kAvxVnniBlockKernels = {gemm<Avx2Blocks<Dot>>, pack_blocks, values_of<Avx2Blocks<Dot>>,
                                           decode_rows<Avx2Blocks<Dot>>};
}
