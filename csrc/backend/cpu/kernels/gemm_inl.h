// The products of kernels_inl.h: dot products of weight rows with rows of x, over the one-register type Vec of the simd header.
//
// Columns are taken in blocks of 2 kVec. A register of weights is one half of a block: for bf16 the even or the odd columns, because
// a register of pairs becomes either with one instruction; for the other types the first or the second kVec columns. Rows of x are
// packed to match: for bf16 weights split_pairs() puts the even columns of a block before the odd ones; the last block is completed with
// zeros.
//
// Order of a sum: lane l adds the l-th column of the first half of each block, then that of the second half, block after block, with
// fused multiply-add; at last the lanes are added in the order of put4(). It depends on K alone, so a row of x gets the same bits in
// any batch.
//
// Loops: a tile is 4 weight rows and up to kTileRows rows of x, whose sums are registers. Each group of weight rows meets all rows of
// x before the next group, so that weights are read from memory once, and the rows of x come from the second-level cache, from which
// a tile takes a register for every 4 multiplications. The passes over a group share the prefetch of later ones: memory then works
// during all of them, not only during the first. Lines come from memory into the second-level cache some groups ahead, and into the first
// one group ahead. Prefetched from memory into the first at once, tiles of 4 to 12 rows read at little more than half of the rate on
// Zen 4; probably since lines wait in its few miss buffers, which the products' loads need too.
#pragma once
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/passes.h"

namespace {

using lynx_rt::DType;

template <DType D>
constexpr int64_t kSize = D == DType::kF32 ? 4 : 2;

constexpr int64_t kBlockColumns = 2 * kVec;
constexpr int64_t kGroupRows = 4;  // weight rows of a tile
// Bytes of the rows of x that weights meet before the next rows: less than a second-level cache.
constexpr int64_t kRowsBytes = 192 << 10;
// Weights come into the second-level cache that many groups ahead, from the least to the most that have so many bytes.
constexpr int64_t kLeastFar = 2, kMostFar = 4, kFarBytes = 64 << 10;

// What a block of a tile prefetches: `bytes` of the next group, and of one that is `apart` bytes beyond it.
struct Ahead {
  const char* at;
  int64_t apart, bytes;
};

// Prefetches kLines lines of each.
template <int kLines>
[[gnu::always_inline]] inline void fetch(const char* at, int64_t apart) {
#pragma GCC unroll 4
  for (int l = 0; l < kLines; ++l) {
    prefetch_far(at + apart + l * 64);
    prefetch(at + l * 64);
  }
}

void split_pairs(float* x, int64_t n) {
  for (int64_t b = 0; b < n; b += kBlockColumns) {
    Vec first = load_vec(x + b), second = load_vec(x + b + kVec);
    split_lanes(first, second);
    store_vec(x + b, first);
    store_vec(x + b + kVec, second);
  }
}

void join_pairs(float* x, int64_t n) {
  for (int64_t b = 0; b < n; b += kBlockColumns) {
    float pairs[kBlockColumns];
    for (int64_t i = 0; i < kVec; ++i) pairs[2 * i] = x[b + i], pairs[2 * i + 1] = x[b + kVec + i];
    std::memcpy(x + b, pairs, sizeof pairs);
  }
}

template <DType W, int NR, int MR, bool kHalf>
[[gnu::always_inline]] inline void multiply_half(const char* w, int64_t w_stride, const char* x, int64_t x_stride,
                                                 Vec (&acc)[MR][NR]) {
  // The pragmas are for gcc 12 and NEON: it would keep the sums in memory.
  Vec xv[MR];
#pragma GCC unroll 8
  for (int j = 0; j < MR; ++j) xv[j] = load_vec(x + j * x_stride + kHalf * kVec * 4);
#pragma GCC unroll 4
  for (int i = 0; i < NR; ++i) {
    const Vec wv = load_half<W, kHalf>(w + i * w_stride);
#pragma GCC unroll 8
    for (int j = 0; j < MR; ++j) acc[j][i] = fmadd(wv, xv[j], acc[j][i]);
  }
}

// The tile of the plain products. A tile class of gemm() has
//   kColumns    columns of a block; a weight row has the bytes of kBlockBytes in it
//   kMostRows   rows of x of a tile
//   run()       multiplies NR weight rows with MR rows of x. kLines: lines of 64 bytes that a block prefetches.
template <DType W>
struct PlainTile {
  static constexpr int64_t kColumns = kBlockColumns, kBlockBytes = kBlockColumns * kSize<W>;
  static constexpr int kMostRows = kTileRows;

  template <int NR, int MR, int kLines>
  static void run(const char* w, int64_t w_stride, const char* x, int64_t x_stride, int64_t k, Ahead ahead, float* out,
                  int64_t out_stride, bool accumulate);
};

template <DType W>
template <int NR, int MR, int kLines>
void PlainTile<W>::run(const char* w, int64_t w_stride, const char* x, int64_t x_stride, int64_t k, Ahead ahead, float* out,
                       int64_t out_stride, bool accumulate) {
  Vec acc[MR][NR];
  for (int j = 0; j < MR; ++j)
    for (int i = 0; i < NR; ++i) acc[j][i] = zero_vec();
  const char* const end = w + k / kBlockColumns * kBlockColumns * kSize<W>;
  for (; w < end; w += kBlockColumns * kSize<W>, x += kBlockColumns * 4, ahead.at += ahead.bytes) {
    fetch<kLines>(ahead.at, ahead.apart);
    multiply_half<W, NR, MR, false>(w, w_stride, x, x_stride, acc);
    multiply_half<W, NR, MR, true>(w, w_stride, x, x_stride, acc);
  }
  if (const int64_t rest = k % kBlockColumns) {
    alignas(64) char tail[NR][kBlockColumns * kSize<W>] = {};
    for (int i = 0; i < NR; ++i) std::memcpy(tail[i], w + i * w_stride, size_t(rest * kSize<W>));
    multiply_half<W, NR, MR, false>(tail[0], sizeof tail[0], x, x_stride, acc);
    multiply_half<W, NR, MR, true>(tail[0], sizeof tail[0], x, x_stride, acc);
  }
#pragma GCC unroll 8
  for (int j = 0; j < MR; ++j) {
    if constexpr (NR == 4) {
      put4(acc[j], out + j * out_stride, accumulate);
    } else {
      static_assert(NR == 1);
      const Vec sums[4] = {acc[j][0], acc[j][0], acc[j][0], acc[j][0]};
      float four[4];
      put4(sums, four, false);
      float* to = out + j * out_stride;
      *to = accumulate ? *to + four[0] : four[0];
    }
  }
}

// NR weight rows against m rows of x. next, far: groups that are multiplied after this one; next = w: nothing is fetched.
template <class Tile, int NR>
inline void gemm_group(const char* w, int64_t w_stride, const char* x, int64_t x_stride, int64_t m, int64_t k, const char* next,
                       const char* far, float* out, int64_t out_stride, bool accumulate) {
  constexpr int64_t kBytes = NR * Tile::kBlockBytes;  // of a block of the group
  constexpr int kLines = int((kBytes + 63) / 64);
  const int64_t passes = (m + Tile::kMostRows - 1) / Tile::kMostRows;
  Ahead ahead{next, far - next, kBytes / passes};
  in_passes<Tile::kMostRows>(m, [&](auto rows, int64_t j) {
    const char* const xj = x + j * x_stride;
    float* const to = out + j * out_stride;
    if (NR == 1 || next == w)
      Tile::template run<NR, rows.number, 0>(w, w_stride, xj, x_stride, k, ahead, to, out_stride, accumulate);
    else if (passes == 1)
      Tile::template run<NR, rows.number, kLines>(w, w_stride, xj, x_stride, k, ahead, to, out_stride, accumulate);
    else
      Tile::template run<NR, rows.number, (kLines + 1) / 2>(w, w_stride, xj, x_stride, k, ahead, to, out_stride, accumulate);
    ahead.at += ahead.bytes * (k / Tile::kColumns);
  });
}

template <class Tile>
void gemm(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
          int64_t out_stride, bool accumulate, const void* next) {
  const char* w = static_cast<const char*>(weights);
  int64_t at_once = kRowsBytes / (x_stride + 1) / Tile::kMostRows * Tile::kMostRows;
  at_once = at_once < Tile::kMostRows ? Tile::kMostRows : at_once;
  const int64_t groups = n / kGroupRows, group_bytes = kGroupRows * w_stride;
  int64_t far = kFarBytes / (group_bytes + 1);
  far = far < kLeastFar ? kLeastFar : far > kMostFar ? kMostFar : far;
  for (int64_t j = 0; j < m; j += at_once) {
    const char* x = static_cast<const char*>(rows) + j * x_stride;
    const int64_t count = m - j < at_once ? m - j : at_once;
    float* const to = out + j * out_stride;
    for (int64_t g = 0; g < groups; ++g) {
      const char* const from = w + g * group_bytes;
      const auto later = [&](int64_t other) {
        if (other < groups && j == 0) return w + other * group_bytes;
        if (other >= groups && j + at_once >= m && next) return static_cast<const char*>(next) + (other - groups) * group_bytes;
        return from;
      };
      gemm_group<Tile, kGroupRows>(from, w_stride, x, x_stride, count, k, later(g + 1), later(g + far), to + g * kGroupRows,
                                   out_stride, accumulate);
    }
    for (int64_t i = groups * kGroupRows; i < n; ++i) {
      const char* const from = w + i * w_stride;
      gemm_group<Tile, 1>(from, w_stride, x, x_stride, count, k, from, from, to + i, out_stride, accumulate);
    }
  }
}

}  // namespace
