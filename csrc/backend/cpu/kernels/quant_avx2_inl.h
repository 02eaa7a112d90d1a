// The common part of the quantised products of AVX2 and AVX-VNNI. A line of weights is two registers of 8 weight rows, and serves up
// to kMost rows of x, of which one quad (4 bytes) at a time is broadcast.
//
// A class Dot says how they are multiplied:
//   kBits          bits of a weight
//   kParts         registers that part() makes of a register of weights, each for a quad of its own
//   kSummed        lines whose products add() may sum before sum32() must make 32-bit sums of them
//   Quads          the quads of the rows of x in a group: `data` is the first row's, a row is `stride` bytes, at(l, p) of which
//                  are before the quad for part p of line l
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/quant_inl.h"

namespace {

constexpr int kMost = 5;  // 10 sums, two registers of weights and what is computed of them: 15 of the 16 registers

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// A sum that gcc must have before what follows: it would add up products first, and has too few registers for them.
inline __m256i next(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

// The lower or the upper halves of bytes.
inline __m256i nibbles(__m256i u, int p) { return _mm256_and_si256(p ? _mm256_srli_epi16(u, 4) : u, _mm256_set1_epi8(15)); }

// The bytes of x as they are packed.
template <int Parts>
struct PackedQuads {
  const char* data;
  int64_t stride;

  PackedQuads(QuantRows x, int64_t, int64_t g) : data(x.bytes(0, g)), stride(x.stride) {}
  static int64_t at(int64_t l, int p) { return 4 * (Parts * l + p); }
};

// acc[j] += the product of a group of a panel with row j of x, j < R.
template <class Dot, int R>
inline void rows_of_group(const char* w, const char* quads, int64_t stride, QuantRows x, int64_t g, QuantSums* acc) {
  const char* lines = w + Quant::kLine;
  __m256i sums[R][2];
  for (int64_t first = 0; first < kGroupLines<Dot::kBits>; first += Dot::kSummed) {
    __m256i part[R][2];
    for (int j = 0; j < R; ++j)
      for (int h = 0; h < 2; ++h) part[j][h] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int64_t l = first; l < first + Dot::kSummed; ++l) {
      const char* line = lines + l * Quant::kLine;
      _mm_prefetch(line + kAheadBytes, _MM_HINT_T0);
      for (int p = 0; p < Dot::kParts; ++p) {
        const __m256i u[2] = {Dot::part(load(line), p), Dot::part(load(line + 32), p)};
        for (int j = 0; j < R; ++j) {
          int32_t quad;
          std::memcpy(&quad, quads + j * stride + Dot::Quads::at(l, p), 4);
          for (int h = 0; h < 2; ++h) part[j][h] = next(Dot::add(part[j][h], u[h], _mm256_set1_epi32(quad)));
        }
      }
    }
    for (int j = 0; j < R; ++j)
      for (int h = 0; h < 2; ++h) {
        const __m256i more = Dot::sum32(part[j][h]);
        sums[j][h] = first == 0 ? more : _mm256_add_epi32(sums[j][h], more);
      }
  }
  for (int h = 0; h < 2; ++h) {
    const __m256 scales = _mm256_loadu_ps(reinterpret_cast<const float*>(w) + 8 * h);
    for (int j = 0; j < R; ++j) {
      const __m256i zero = _mm256_set1_epi32(x.sum(j, g) * kZero<Dot::kBits>);
      const __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(x.scale(j, g)));
      const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(sums[j][h], zero)), scale);
      _mm256_store_ps(acc[j] + 8 * h, _mm256_add_ps(_mm256_load_ps(acc[j] + 8 * h), value));
    }
  }
}

template <class Dot>
void gemm(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
          int64_t out_stride, bool accumulate, const void*) {
  for_groups<Dot::kBits>(weights, w_stride, n, rows, x_stride, m, k, out, out_stride, accumulate,
                         [](const char* w, QuantRows x, int64_t count, int64_t g, QuantSums* acc) {
                           const typename Dot::Quads quads(x, count, g);
                           in_passes<kMost>(count, [&](auto r, int64_t j) {
                             rows_of_group<Dot, r.number>(w, quads.data + j * quads.stride, quads.stride, x.from(j), g, acc + j);
                           });
                         });
}

}  // namespace
