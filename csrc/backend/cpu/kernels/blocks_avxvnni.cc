// Products with weights in blocks with AVX-VNNI: vpdpbusd of 256 bits.
#include "backend/cpu/kernels/blocks_avx2_inl.h"

namespace {

struct Dot {
  static __m256i fours(__m256i u, __m256i q) { return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), u, q); }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kAvxVnniBlockKernels = {gemm<Avx2Blocks<Dot>>, pack_blocks, values_of<Avx2Blocks<Dot>>,
                                           decode_rows<Avx2Blocks<Dot>>};
}
