#include "backend/cpu/kernels/simd_scalar.h"
// The simd header must come first: the kernels are written over its types.
#include "backend/cpu/kernels/kernels_inl.h"

namespace lynx_rt::cpu {
const Kernels kScalarKernels = make_kernels(Isa::kScalar, nullptr);
}
