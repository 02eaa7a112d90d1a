// Quantised products with AVX2.
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/quant_avx2_inl.h"

namespace {

// vpmaddubsw adds the products of two columns in 16 bits. Eight of its results fit: 16 * 15 * 127 < 2^15.
struct Int4 {
  static constexpr int kBits = 4, kParts = 2, kSummed = 4;
  using Quads = PackedQuads<kParts>;
  static __m256i part(__m256i u, int p) { return nibbles(u, p); }
  static __m256i add(__m256i sum, __m256i u, __m256i quad) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u, quad)); }
  static __m256i sum32(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
};

// Even and odd columns apart, in 16 bits each: vpmaddubsw would saturate.
struct Int8 {
  static constexpr int kBits = 8, kParts = 2, kSummed = 32;

  struct Quads {
    alignas(32) char data[kMaxRows * 2 * Quant::kGroup];
    static constexpr int64_t stride = 2 * Quant::kGroup;

    Quads(QuantRows x, int64_t count, int64_t g) {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t i = 0; i < Quant::kGroup; i += 32) {
          const __m256i v = load(x.bytes(j, g) + i);
          __m256i* to = reinterpret_cast<__m256i*>(data + j * stride + i);
          _mm256_store_si256(to, _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
          _mm256_store_si256(to + Quant::kGroup / 32, _mm256_srai_epi16(v, 8));
        }
    }
    static int64_t at(int64_t l, int p) { return 4 * l + Quant::kGroup * p; }
  };
  static __m256i part(__m256i u, int p) { return p ? _mm256_srli_epi16(u, 8) : _mm256_and_si256(u, _mm256_set1_epi16(255)); }
  static __m256i add(__m256i sum, __m256i u, __m256i quad) { return _mm256_add_epi32(sum, _mm256_madd_epi16(u, quad)); }
  static __m256i sum32(__m256i sum) { return sum; }
};

}  // namespace

namespace lynx_rt::cpu {
const QuantKernels kAvx2QuantKernels = {gemm<Int8>, gemm<Int4>, pack_quant, quantize_group<8>, quantize_group<4>};
}
