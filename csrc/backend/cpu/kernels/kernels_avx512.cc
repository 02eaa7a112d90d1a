#include "backend/cpu/kernels/simd_avx512.h"
// The simd header must come first: the kernels are written over its types.
#include "backend/cpu/kernels/kernels_inl.h"

namespace lynx_rt::cpu {
const Kernels kAvx512Kernels = make_kernels(Isa::kAvx512, nullptr);
}
