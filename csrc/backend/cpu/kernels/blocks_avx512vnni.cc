// Products with weights in blocks with AVX-512 VNNI, in registers of 256 bits, of which there are 32.
#include "backend/cpu/kernels/blocks_avx2_inl.h"

namespace {

struct Dot : WideDot {
  static constexpr int kMost = 10;
  static __m256i add(__m256i sum, __m256i u, __m256i q) { return _mm256_dpbusd_epi32(sum, u, q); }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kAvx512VnniBlockKernels = {gemm<Avx2Blocks<Dot>>, pack_blocks, values_of<Avx2Blocks<Dot>>,
                                              decode_rows<Avx2Blocks<Dot>>};
}
