// Products with weights in blocks, in plain code, for any CPU.
#include "backend/cpu/kernels/blocks_plain_inl.h"

namespace lynx_rt::cpu {
const BlockKernels kScalarBlockKernels = {plain, pack_blocks, values_of<PlainBlocks>};
}
