// The common part of the products with weights in blocks of AVX2 and of the sets beyond it. A register is 4 bytes of 8 rows of weights.
//
// A class Dot is one of blocks_products_x86_inl.h.
#pragma once
#include "backend/cpu/kernels/blocks_products_x86_inl.h"

namespace {

template <class Dot>
struct Avx2Blocks : BlockProducts<Avx2Blocks<Dot>, Dot> {
  using Codes = __m256i;
  using Eight = __m256i;
  static constexpr int kSignedZero = Dot::kWide ? 128 : 0;

  static Codes load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static __m128i half(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static Codes halves(const uint8_t* p) {
    const __m128i b = half(p);
    return low(_mm256_set_m128i(_mm_srli_epi16(b, 4), b));
  }
  static Codes pairs(const uint8_t* p) {
    const __m256i b = _mm256_cvtepu8_epi16(half(p));
    return low(_mm256_or_si256(b, _mm256_slli_epi16(b, 4)));
  }
  static Codes bits(const uint8_t* p, int shift, int mask) { return bits(load(p), shift, mask); }
  static Codes upper(Codes c, Codes b) { return _mm256_or_si256(c, _mm256_slli_epi16(b, 4)); }
  static Codes look_up(Codes c, const int8_t (&table)[16]) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half(table)), c);
  }
  static float half_float(const uint8_t* p) { return _cvtsh_ss(read<uint16_t>(p)); }
  static void store(void* p, Codes c) { _mm256_store_si256(static_cast<__m256i*>(p), c); }

  static void columns(const uint8_t* p, int64_t stride, Eight (&out)[4]) {
    __m256i rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = _mm256_set_m128i(half(p + (i + 4) * stride), half(p + i * stride));
    const __m256i a = _mm256_unpacklo_epi32(rows[0], rows[1]), b = _mm256_unpacklo_epi32(rows[2], rows[3]);
    const __m256i c = _mm256_unpackhi_epi32(rows[0], rows[1]), d = _mm256_unpackhi_epi32(rows[2], rows[3]);
    out[0] = _mm256_unpacklo_epi64(a, b);
    out[1] = _mm256_unpackhi_epi64(a, b);
    out[2] = _mm256_unpacklo_epi64(c, d);
    out[3] = _mm256_unpackhi_epi64(c, d);
  }
  static Eight low(Eight e) { return _mm256_and_si256(e, _mm256_set1_epi8(15)); }
  static Eight high(Eight e) { return low(_mm256_srli_epi16(e, 4)); }
  static void pairs(Eight e, Eight& first, Eight& second) {
    const __m256i l = low(e), h = high(e);
    const __m256 a = _mm256_castsi256_ps(_mm256_unpacklo_epi8(l, h)), b = _mm256_castsi256_ps(_mm256_unpackhi_epi8(l, h));
    first = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
    second = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
  }
  static Eight bits(Eight e, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(e, shift), _mm256_set1_epi8(char(mask)));
  }
  static Eight flip(Eight e) { return _mm256_xor_si256(e, _mm256_set1_epi8(char(0x80))); }
  template <int I, bool kSigned>
  static Eight bytes(Eight e) {
    const auto at = [](int w) { return kSigned ? (4 * w + I) << 8 | 0x80 : 0x8000 | (4 * w + I); };
    const auto word = [&](int w) { return int(uint32_t(at(w)) * 0x10001u); };
    const __m256i placed =
        _mm256_shuffle_epi8(e, _mm256_broadcastsi128_si256(_mm_setr_epi32(word(0), word(1), word(2), word(3))));
    return kSigned ? _mm256_srai_epi16(placed, 8) : placed;
  }
  static Eight twice(Eight e) {
    return _mm256_or_si256(_mm256_and_si256(e, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(e, 16));
  }
  static Eight words(Eight e, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi32(e, shift), _mm256_set1_epi32(mask));
  }
  static Eight less(Eight e, int n) { return _mm256_sub_epi32(e, _mm256_set1_epi32(n)); }
  static Eight halves_times(Eight first, Eight last, int n) {
    return _mm256_mullo_epi16(_mm256_blend_epi16(first, last, 0xaa), _mm256_set1_epi16(short(n)));
  }
  static void half_words(Eight e, int i, float* to) {
    const __m128i at =
        _mm_add_epi8(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13), _mm_set1_epi8(char(2 * i)));
    const __m256i placed = _mm256_shuffle_epi8(e, _mm256_broadcastsi128_si256(at));
    _mm256_store_ps(to, _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(placed, 0x08))));
  }
  static void half_floats(const uint8_t* p, int64_t stride, float* to) {
    const auto at = [&](int i) { return int(read<uint16_t>(p + i * stride)); };
    __m128i v = _mm_cvtsi32_si128(at(0));
    v = _mm_insert_epi16(v, at(1), 1);
    v = _mm_insert_epi16(v, at(2), 2);
    v = _mm_insert_epi16(v, at(3), 3);
    v = _mm_insert_epi16(v, at(4), 4);
    v = _mm_insert_epi16(v, at(5), 5);
    v = _mm_insert_epi16(v, at(6), 6);
    v = _mm_insert_epi16(v, at(7), 7);
    _mm256_store_ps(to, _mm256_cvtph_ps(v));
  }
  static void powers(const uint8_t* p, int64_t stride, float* to) {
    __m128i v = _mm_cvtsi32_si128(p[0]);
    v = _mm_insert_epi8(v, p[stride], 1);
    v = _mm_insert_epi8(v, p[2 * stride], 2);
    v = _mm_insert_epi8(v, p[3 * stride], 3);
    v = _mm_insert_epi8(v, p[4 * stride], 4);
    v = _mm_insert_epi8(v, p[5 * stride], 5);
    v = _mm_insert_epi8(v, p[6 * stride], 6);
    v = _mm_insert_epi8(v, p[7 * stride], 7);
    const __m256i e = _mm256_cvtepu8_epi32(v), normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23),
                  small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to),
                       _mm256_blendv_epi8(small, normal, _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1))));
  }

  static bool fp8(const uint8_t* codes, int64_t n, const Fp8Bits& bits, uint16_t* out) {
    const __m256i low = _mm256_broadcastsi128_si256(half(bits.low)), high = _mm256_broadcastsi128_si256(half(bits.high));
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += kRun) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + i + kFp8Ahead), _MM_HINT_T0);
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
};

}  // namespace
