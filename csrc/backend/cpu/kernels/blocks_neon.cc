// Products with weights in blocks with NEON.
#include "backend/cpu/kernels/blocks_neon_inl.h"

namespace {

struct Dot {
  static int32x4_t add(int32x4_t sum, int8x16_t c, int8x16_t q) {
    const int16x8_t low = vmull_s8(vget_low_s8(c), vget_low_s8(q)), high = vmull_high_s8(c, q);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
};

}  // namespace

namespace lynx_rt::cpu {
const BlockKernels kNeonBlockKernels = {gemm<NeonBlocks<Dot>>, pack_blocks, values_of<NeonBlocks<Dot>>};
}
