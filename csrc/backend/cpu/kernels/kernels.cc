#include "backend/cpu/kernels/kernels.h"

namespace lynx_rt::cpu {

const Kernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx2: return kAvx2Kernels;
    case Isa::kAvx512: return kAvx512Kernels;
    case Isa::kAvx512Bf16: return kAvx512Bf16Kernels;
    case Isa::kScalar: break;
  }
#endif
  (void)isa;
  return kScalarKernels;
}

}  // namespace lynx_rt::cpu
