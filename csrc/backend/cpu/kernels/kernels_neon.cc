#include "backend/cpu/kernels/simd_neon.h"
// The simd header must come first: the kernels are written over its types.
#include "backend/cpu/kernels/kernels_inl.h"

namespace lynx_rt::cpu {
const Kernels kNeonKernels = make_kernels(Isa::kNeon, nullptr);
}
