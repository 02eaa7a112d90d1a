// The common part of the products with weights in blocks of AVX2 and of the sets beyond it. Dot::fours(u, q) are the eight sums of four
// products of bytes, u without sign.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/blocks_inl.h"

namespace {

template <class Dot>
struct Avx2Blocks {
  using Codes = __m256i;
  static constexpr int kRows = 6;
  static constexpr int at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

  static Codes load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static __m128i half(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static Codes halves(const uint8_t* p) {
    const __m128i b = half(p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(b, 4), b), _mm256_set1_epi8(15));
  }
  static Codes pairs(const uint8_t* p) {
    const __m256i b = _mm256_cvtepu8_epi16(half(p));
    return _mm256_and_si256(_mm256_or_si256(b, _mm256_slli_epi16(b, 4)), _mm256_set1_epi8(15));
  }
  static Codes bits(const uint8_t* p, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(load(p), shift), _mm256_set1_epi8(char(mask)));
  }
  static Codes upper(Codes c, Codes b) { return _mm256_or_si256(c, _mm256_slli_epi16(b, 4)); }
  static Codes less(Codes c, int n) { return _mm256_sub_epi8(c, _mm256_set1_epi8(char(n))); }
  static Codes look_up(Codes c, const int8_t (&table)[16]) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half(table)), c);
  }
  static float half_float(const uint8_t* p) { return _cvtsh_ss(read<uint16_t>(p)); }
  static void store(int8_t* p, Codes c) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), c); }

  // Values that gcc must have before what follows: it would compute products first, and has too few registers for them.
  static __m256i now(__m256i v) {
    asm("" : "+x"(v));
    return v;
  }
  static __m256 now(__m256 v) {
    asm("" : "+x"(v));
    return v;
  }

  template <BlockCode Code>
  static __m256i steps(const Decoded& part, int64_t r) {
    if (Code != BlockCode::kQ6_K) return _mm256_set1_epi32(part.steps[0][r]);
    return _mm256_set_m128i(_mm_set1_epi32(part.steps[1][r]), _mm_set1_epi32(part.steps[0][r]));
  }

  static void add_minimums(const float* a, const float* b, int64_t n, Lanes& low) {
    __m256 sums = _mm256_loadu_ps(low);
    int64_t r = 0;
    for (; r + 8 <= n; r += 8) sums = _mm256_fmadd_ps(_mm256_load_ps(a + r), _mm256_loadu_ps(b + r), sums);
    _mm256_storeu_ps(low, sums);
    if (r < n) _mm_storeu_ps(low, _mm_fmadd_ps(_mm_load_ps(a + r), _mm_loadu_ps(b + r), _mm_loadu_ps(low)));
  }

  static bool fp8(const uint8_t* codes, int64_t n, const Fp8Bits& bits, uint16_t* out) {
    const __m256i low = _mm256_broadcastsi128_si256(half(bits.low)), high = _mm256_broadcastsi128_si256(half(bits.high));
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += kRun) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + i + kAhead), _MM_HINT_T0);
      // Eight bytes of the first and of the second half in each lane, because bytes become words within a lane.
      const __m256i code = _mm256_permute4x64_epi64(load(codes + i), 0xd8), size = _mm256_and_si256(code, _mm256_set1_epi8(127));
      const __m256i mantissa = _mm256_and_si256(code, _mm256_set1_epi8(7));
      const __m256i entry = _mm256_min_epu8(size, _mm256_or_si256(mantissa, _mm256_set1_epi8(8)));
      const __m256i l = _mm256_shuffle_epi8(low, entry), h = _mm256_shuffle_epi8(high, entry), zero = _mm256_setzero_si256();
      largest = _mm256_max_epu8(largest, size);
      // Sign and exponent in their places; the sum of two signs is that of a product.
      const auto put = [&](__m256i words, __m256i upper, uint16_t* to) {
        const __m256i moved = _mm256_and_si256(_mm256_srai_epi16(upper, 4), _mm256_set1_epi16(int16_t(0x8780)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi16(words, moved));
      };
      put(_mm256_unpacklo_epi8(l, h), _mm256_unpacklo_epi8(zero, code), out + i);
      put(_mm256_unpackhi_epi8(l, h), _mm256_unpackhi_epi8(zero, code), out + i + kRun / 2);
    }
    const __m256i nan = _mm256_cmpeq_epi8(largest, _mm256_set1_epi8(127));
    return !_mm256_testz_si256(nan, nan);
  }

  // The products take one operand without signs: |c|, and q with the sign of c.
  template <BlockCode Code, int W, int R, bool kSteps>
  static void add(const Decoded* parts, int64_t groups, BlockX x, int64_t first, Lanes* const* acc) {
    constexpr bool kSigned = !has_minimums(Code);
    const char* bytes = x.bytes(0, first);
    const float* scales = x.scales(0) + first;
    const int64_t scale_stride = x.stride / 4;
    for (int64_t g = 0; g < groups; ++g) {
      __m256i sums[W][R];
      __m256 values[W][R];
      for (int t = 0; t < W; ++t)
        for (int j = 0; j < R; ++j) sums[t][j] = _mm256_setzero_si256(), values[t][j] = _mm256_setzero_ps();
#pragma GCC unroll 1
      for (int64_t r = g * kGroupRuns; r < (g + 1) * kGroupRuns; ++r, bytes += kRun)
        for (int t = 0; t < W; ++t) {
          const __m256i codes = load(parts[t].codes + kRun * r), absolute = kSigned ? _mm256_abs_epi8(codes) : codes;
          const __m256i factor = kSteps ? steps<Code>(parts[t], r) : _mm256_setzero_si256();
          const __m256 scale = kSteps ? _mm256_setzero_ps() : _mm256_set1_ps(parts[t].scales[r]);
          for (int j = 0; j < R; ++j) {
            const __m256i plain = load(bytes + j * x.stride), q = kSigned ? _mm256_sign_epi8(plain, codes) : plain;
            // Sums of two products fit 16 bits: 2 * 128 * 127 < 2^15.
            if constexpr (kSteps)
              sums[t][j] = now(_mm256_add_epi32(sums[t][j], _mm256_madd_epi16(_mm256_maddubs_epi16(absolute, q), factor)));
            else
              values[t][j] = now(_mm256_fmadd_ps(_mm256_cvtepi32_ps(Dot::fours(absolute, q)), scale, values[t][j]));
          }
        }
      for (int t = 0; t < W; ++t)
        for (int j = 0; j < R; ++j) {
          if constexpr (kSteps)
            values[t][j] = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[t][j]), _mm256_set1_ps(parts[t].group_scales[g]));
          const __m256 scale = _mm256_set1_ps(scales[j * scale_stride + g]);
          float* to = acc[t][j];
          _mm256_storeu_ps(to, _mm256_fmadd_ps(values[t][j], scale, _mm256_loadu_ps(to)));
        }
    }
  }
};

}  // namespace
