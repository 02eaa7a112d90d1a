// bf16 products with the tile registers of AMX (Intel Architecture Instruction Set Extensions Reference, chapter 3).
//
// The weights are the left operand and are not copied: a tile is 16 weight rows x 32 columns, loaded with the stride of the matrix.
// The right operand is 16 column pairs of up to 16 rows of x (tile form, kernels.h), and the result is 16 weight rows x 16 rows of x
// in float32. So one tdpbf16ps serves up to 16 rows of x, and decode is bound by reading the weights, not by arithmetic.
//
// Arithmetic: in each step of 32 columns an element sums the products of the even columns and those of the odd columns, and adds both
// sums to the accumulator, in float32, rounded to nearest even. That is at most k + k / 16 roundings on any path, within the 4 k of
// tests/tolerance.py. Inputs and results below 2^-126 count as zero, as in the bf16 dot product of AVX-512; the error is far below
// the roundings unless the whole sum is that small. An element's sum depends on k alone: not on the other rows of a tile, nor on
// whether they exist, nor on the tile's place. Columns beyond k are zeros in both operands.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/tiles.h"

namespace {

constexpr int64_t kRows = 16;     // rows of a tile: weight rows, or pairs of columns of x
constexpr int64_t kColumns = 32;  // bf16 values in a row of a tile
constexpr int64_t kBytes = 64;    // bytes of a row of a tile

// Steps of 32 columns between the prefetch of a piece of the weights and its use. The CPU's own prefetchers stop at the end of a
// page, which is one row of weights or two.
constexpr int64_t kAhead = 4;

template <int C, int A, int B>
inline void multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" LYNX_RT_SPACE ::"i"(C), "i"(A), "i"(B));
}

// Use of the tiles: 2 a + b holds the results of weight tile a and block b of x, 4 + a weight tile a, 6 + b block b of x.
constexpr int kWeights = 4, kBlocks = 6;

// Sets up the tiles for two blocks of x, of rows0 and rows1 rows. rows1 may be 0.
void configure(int64_t rows0, int64_t rows1) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    const bool second = rows1 > 0 && t % 2 == 1;
    config.set(t, kRows, t / 2 == kWeights / 2 ? kBytes : 4 * (second ? rows1 : rows0));
  }
  config.load();
}

// Transposes a 16 x 16 matrix of 32-bit values.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

inline __mmask16 first(int64_t lanes) { return lanes >= 16 ? __mmask16(0xffff) : __mmask16((1u << (lanes > 0 ? lanes : 0)) - 1); }

// Loads a tile of 16 weight rows x 32 columns, of which only `rows` and `columns` exist. The rest becomes zero and is not read.
template <int T>
[[gnu::noinline]] void load_part(const char* w, int64_t w_stride, int64_t rows, int64_t columns) {
  alignas(64) char part[kRows * kBytes] = {};
  for (int64_t i = 0; i < rows && i < kRows; ++i)
    std::memcpy(part + i * kBytes, w + i * w_stride, size_t(2 * (columns < kColumns ? columns : kColumns)));
  load_tile<T>(part, kBytes);
}

template <int T>
inline void load_weights(const char* w, int64_t w_stride, int64_t rows, int64_t columns) {
  if (rows >= kRows && columns >= kColumns)
    load_tile<T>(w, w_stride);
  else
    load_part<T>(w, w_stride, rows, columns);
}

// Stores a tile of results: out[j * out_stride + i] for `rows` weight rows i and m rows j of x.
template <int T>
inline void put_tile(float* out, int64_t out_stride, int64_t rows, int64_t m, bool accumulate) {
  alignas(64) float tile[kRows * kRows];
  store_tile<T>(tile, kBytes);
  __m512i r[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(tile + i * kRows);
  transpose(r);
  const __mmask16 mask = first(rows);
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j, out += out_stride) {
    if (j >= m) break;
    __m512 v = _mm512_castsi512_ps(r[j]);
    if (accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), v);
    _mm512_mask_storeu_ps(out, mask, v);
  }
}

// Weight tiles that a product takes at a time. Two need fewer loads per tdpbf16ps; one reads fewer rows at a time, which is faster
// while the weights come from memory.
constexpr int tiles(bool stream) { return stream ? 1 : 2; }

// Multiplies tiles(Stream) tiles of weight rows, from w on, with B blocks of x; n of the weight rows exist. With Stream it prefetches
// the weights, and at their end those at `next`, unless it is null.
template <bool Stream, int B>
inline void product(const char* w, int64_t w_stride, int64_t n, const char* next, const char* x, int64_t x_stride, int64_t m,
                    int64_t k, float* out, int64_t out_stride, bool accumulate) {
  constexpr int A = tiles(Stream);
  const int64_t rows0 = m < kRows ? m : kRows, rows1 = m - kRows;
  const float* result = out;
  int64_t results = m;  // rows of `out` that have not been prefetched
  zero_tile<0>();
  if constexpr (B == 2) zero_tile<1>();
  if constexpr (A == 2) zero_tile<2>();
  if constexpr (A == 2 && B == 2) zero_tile<3>();
  for (int64_t p = 0; p < k; p += kColumns) {
    for (int i = 0; i < 2 && results > 0; ++i, --results, result += out_stride) {
      asm volatile("prefetchw (%0)" ::"r"(result));
      if constexpr (A == 2) asm volatile("prefetchw 64(%0)" ::"r"(result));
    }
    if constexpr (Stream) {
      const int64_t ahead = p + (kAhead * kColumns < k ? kAhead * kColumns : k);
      const char* to = ahead < k ? w + ahead * 2 : next ? next + (ahead - k) * 2 : nullptr;
      if (to)
        for (int i = 0; i < A * kRows; ++i) _mm_prefetch(to + i * w_stride, _MM_HINT_T0);
    }
    load_tile<kBlocks>(x + p * 2 * rows0, 4 * rows0);
    load_weights<kWeights>(w + p * 2, w_stride, n, k - p);
    multiply_add<0, kWeights, kBlocks>();
    if constexpr (B == 2) {
      load_tile<kBlocks + 1>(x + kRows * x_stride + p * 2 * rows1, 4 * rows1);
      multiply_add<1, kWeights, kBlocks + 1>();
    }
    if constexpr (A == 2) {
      load_weights<kWeights + 1>(w + kRows * w_stride + p * 2, w_stride, n - kRows, k - p);
      multiply_add<2, kWeights + 1, kBlocks>();
      if constexpr (B == 2) multiply_add<3, kWeights + 1, kBlocks + 1>();
    }
  }
  put_tile<0>(out, out_stride, n, rows0, accumulate);
  if constexpr (B == 2) put_tile<1>(out + kRows * out_stride, out_stride, n, rows1, accumulate);
  if constexpr (A == 2) put_tile<2>(out + kRows, out_stride, n - kRows, rows0, accumulate);
  if constexpr (A == 2 && B == 2) put_tile<3>(out + kRows * out_stride + kRows, out_stride, n - kRows, rows1, accumulate);
}

template <bool Stream, int B>
void all_weights(const char* w, int64_t w_stride, int64_t n, const char* x, int64_t x_stride, int64_t m, int64_t k, float* out,
                 int64_t out_stride, bool accumulate) {
  constexpr int64_t step = tiles(Stream) * kRows;
  for (int64_t i = 0; i < n; i += step, w += step * w_stride) {
    const char* next = i + 2 * step <= n ? w + step * w_stride : nullptr;
    product<Stream, B>(w, w_stride, n - i, next, x, x_stride, m, k, out + i, out_stride, accumulate);
  }
}

}  // namespace

namespace lynx_rt::cpu {

void amx_gemm_bf16_tiles(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m,
                         int64_t k, float* out, int64_t out_stride, bool accumulate, const void*) {
  const char* w = static_cast<const char*>(weights);
  const char* x = static_cast<const char*>(rows);
  int64_t configured = 0;
  for (int64_t j = 0; j < m; j += 2 * kRows) {
    int64_t count = m - j < 2 * kRows ? m - j : 2 * kRows;
    if (count != configured) configure(count < kRows ? count : kRows, count - kRows);
    configured = count;
    // The first pass streams the weights from memory, the others find them in cache.
    auto pass = j == 0 ? (count > kRows ? all_weights<true, 2> : all_weights<true, 1>)
                       : (count > kRows ? all_weights<false, 2> : all_weights<false, 1>);
    pass(w, w_stride, n, x + j * x_stride, x_stride, count, k, out + j * out_stride, out_stride, accumulate);
  }
  release_tiles();
}

void amx_gemm_bf16_pieces(const void* const* w, const int32_t* n, int64_t pieces, int64_t w_stride, const void* rows,
                          int64_t x_stride, int64_t m, int64_t k, float* out, int64_t out_stride) {
  const char* x = static_cast<const char*>(rows);
  for (int64_t j = 0; j < m; j += 2 * kRows) {
    const int64_t count = m - j < 2 * kRows ? m - j : 2 * kRows;
    configure(count < kRows ? count : kRows, count - kRows);
    auto of_piece = count > kRows ? product<true, 2> : product<true, 1>;
    float* to = out + j * out_stride;
    for (int64_t i = 0; i < pieces; to += n[i++])
      of_piece(static_cast<const char*>(w[i]), w_stride, n[i], i + 1 < pieces ? static_cast<const char*>(w[i + 1]) : nullptr,
               x + j * x_stride, x_stride, count, k, to, out_stride, false);
  }
  release_tiles();
}

void amx_pack_bf16_tiles(const float* const* x, int64_t m, int64_t begin, int64_t n, void* out, int64_t x_stride) {
  for (int64_t b = 0; b < m; b += kRows) {
    int64_t rows = m - b < kRows ? m - b : kRows;
    uint32_t* block = reinterpret_cast<uint32_t*>(static_cast<char*>(out) + b * x_stride + begin * 2 * rows);
    __mmask16 mask = first(rows);
    for (int64_t p = 0; p < n; p += kColumns, block += kRows * rows) {
      __m512i r[16];
      for (int64_t j = 0; j < 16; ++j) {
        r[j] = _mm512_setzero_si512();
        if (j >= rows) continue;
        __m512 low = _mm512_maskz_loadu_ps(first(n - p), x[b + j] + p);
        __m512 high = _mm512_maskz_loadu_ps(first(n - p - 16), x[b + j] + p + 16);
        r[j] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      }
      if (rows == 1) {
        _mm512_storeu_si512(block, r[0]);
        continue;
      }
      transpose(r);
      for (int64_t i = 0; i < kRows; ++i) _mm512_mask_storeu_epi32(block + i * rows, mask, r[i]);
    }
  }
}

}  // namespace lynx_rt::cpu
