#include "backend/cpu/kernels/kernels.h"

namespace lynx_rt::cpu {

// Dot products of bytes (VNNI, and those of ARM) change nothing in Kernels: only the quantised products use them.
[[maybe_unused]] static Kernels with_isa(Kernels kernels, Isa isa) {
  kernels.isa = isa;
  return kernels;
}

#if defined(__x86_64__)
// AMX only changes the products with bf16 weights in Kernels.
static Kernels amx_kernels() {
  Kernels kernels = kAvx512Bf16Kernels;
  kernels.isa = Isa::kAmxBf16;
  kernels.gemm_bf16_tiles = amx_gemm_bf16_tiles;
  kernels.pack_bf16_tiles = amx_pack_bf16_tiles;
  kernels.gemm_bf16_pieces = amx_gemm_bf16_pieces;
  return kernels;
}
#endif

const Kernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx2: return kAvx2Kernels;
    case Isa::kAvxVnni: {
      static const Kernels kernels = with_isa(kAvx2Kernels, Isa::kAvxVnni);
      return kernels;
    }
    case Isa::kAvx512: return kAvx512Kernels;
    case Isa::kAvx512Vnni: {
      static const Kernels kernels = with_isa(kAvx512Kernels, Isa::kAvx512Vnni);
      return kernels;
    }
    case Isa::kAvx512Bf16: return kAvx512Bf16Kernels;
    case Isa::kAmxBf16: {
      static const Kernels kernels = amx_kernels();
      return kernels;
    }
    default: break;
  }
#elif defined(__aarch64__)
  switch (isa) {
    case Isa::kNeon: return kNeonKernels;
    case Isa::kNeonDotprod: {
      static const Kernels kernels = with_isa(kNeonKernels, Isa::kNeonDotprod);
      return kernels;
    }
    case Isa::kNeonI8mm: {
      static const Kernels kernels = with_isa(kNeonKernels, Isa::kNeonI8mm);
      return kernels;
    }
    case Isa::kNeonBf16: return kNeonBf16Kernels;
    default: break;
  }
#endif
  (void)isa;
  return kScalarKernels;
}

const QuantKernels& quant_kernels_for(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx2:
    case Isa::kAvx512: return kAvx2QuantKernels;
    case Isa::kAvxVnni: return kAvxVnniQuantKernels;
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Bf16: return kAvx512VnniQuantKernels;
    case Isa::kAmxBf16: return kAmxInt8QuantKernels;
    default: break;
  }
#elif defined(__aarch64__)
  switch (isa) {
    case Isa::kNeon: return kNeonQuantKernels;
    case Isa::kNeonDotprod: return kNeonDotprodQuantKernels;
    case Isa::kNeonI8mm:
    case Isa::kNeonBf16: return kNeonI8mmQuantKernels;
    default: break;
  }
#endif
  (void)isa;
  return kScalarQuantKernels;
}

const BlockKernels& block_kernels_for(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx2:
    case Isa::kAvx512: return kAvx2BlockKernels;
    case Isa::kAvxVnni: return kAvxVnniBlockKernels;
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Bf16:
    case Isa::kAmxBf16: return kAvx512VnniBlockKernels;
    default: break;
  }
#elif defined(__aarch64__)
  switch (isa) {
    case Isa::kNeon: return kNeonBlockKernels;
    case Isa::kNeonDotprod:
    case Isa::kNeonI8mm:
    case Isa::kNeonBf16: return kNeonDotprodBlockKernels;
    default: break;
  }
#endif
  (void)isa;
  return kScalarBlockKernels;
}

}  // namespace lynx_rt::cpu
