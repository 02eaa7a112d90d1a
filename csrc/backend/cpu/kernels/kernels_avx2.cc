#include "backend/cpu/kernels/simd_avx2.h"
// The simd header must come first: the kernels are written over its types.
#include "backend/cpu/kernels/kernels_inl.h"

namespace lynx_rt::cpu {
const Kernels kAvx2Kernels = make_kernels(Isa::kAvx2, nullptr);
}
