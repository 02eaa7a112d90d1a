// Quantised products with AVX-VNNI: vpdpbusd of 256 bits.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_avx2_inl.h"

namespace {

template <int Bits>
struct Vnni {
  static constexpr int kBits = Bits, kParts = Bits == 8 ? 1 : 2, kSummed = kGroupLines<Bits>;
  using Quads = PackedQuads<kParts>;
  static __m256i part(__m256i u, int p) { return Bits == 8 ? u : nibbles(u, p); }
  static __m256i add(__m256i sum, __m256i u, __m256i quad) { return _mm256_dpbusd_avx_epi32(sum, u, quad); }
  static __m256i sum32(__m256i sum) { return sum; }
};

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kAvxVnniQuantKernels = {gemm<Vnni<8>>, gemm<Vnni<4>>, pack_quant, quantize_group<8>, quantize_group<4>};
}
