// Products with weights in blocks with sdot.
#include "backend/cpu/kernels/blocks_neon_inl.h"

namespace {

struct Dot {
  static int32x4_t add(int32x4_t sum, int8x16_t c, int8x16_t q) { return vdotq_s32(sum, c, q); }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kNeonDotprodBlockKernels = {gemm<NeonBlocks<Dot>>, pack_blocks, values_of<NeonBlocks<Dot>>};
}
