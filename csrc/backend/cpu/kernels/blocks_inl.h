// The common part of the products with weights in blocks (blocks.h) of all instruction sets.
//
// A class V is one of blocks_decode_inl.h, and has
//   kRows                       rows of x of a pass at most
//   at_once(r)                  rows of weights that are multiplied together with r rows of x: 1, 2 or 4
//   add<Code, W, R, steps>(parts, groups, x, g, acc)
//                               adds the products of W decoded parts, with steps or without, with R rows of x to their lanes
//                               acc[W][R][8]; the parts begin at group g of the rows
//   add_minimums(a, b, n, low)  low[r mod 8] += a[r] * b[r] for r < n, a multiple of 4
#pragma once
#include "backend/cpu/kernels/blocks_decode_inl.h"
#include "backend/cpu/kernels/blocks_values_inl.h"
#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/passes.h"
#include "backend/cpu/kernels/quant_scale_inl.h"

namespace {

constexpr int64_t kTile = 4;    // rows of weights that are decoded before they are multiplied
constexpr int64_t kMostX = 32;  // rows of x for which a tile is decoded once; their sums stay in the first-level cache

using Lanes = float[8];

// The packed rows of x.
struct BlockX {
  const char* data;
  int64_t stride, groups;

  const char* bytes(int64_t j, int64_t g) const { return data + j * stride + g * kGroup; }
  const float* scales(int64_t j) const { return Blocks::x_scales(data + j * stride, groups); }
  const float* factors(int64_t j) const { return Blocks::x_factors(data + j * stride, groups); }
  BlockX from(int64_t j) const { return {data + j * stride, stride, groups}; }
};

inline float fold(const Lanes& a) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }

template <bool Value>
struct Bool {
  static constexpr bool value = Value;
};

// Calls add(RowCount<W>, t, Bool<steps>) for all rows of weights of a tile, several at once where few rows of x leave room for their
// sums.
template <class V, BlockCode Code, int R, class Add>
inline void for_tile(const Decoded* parts, int64_t tile, const Add& add) {
  constexpr int kAtOnce = V::at_once(R);
  const auto one = [&](auto rows, int64_t t) {
    if (always_steps(Code) || (!never_steps(Code) && parts[t].has_steps))
      add(rows, t, Bool<!never_steps(Code)>());
    else
      add(rows, t, Bool<always_steps(Code)>());
  };
  int64_t t = 0;
  if constexpr (kAtOnce > 1)
    for (; t + kAtOnce <= tile; t += kAtOnce) {
      bool same = true;
      for (int64_t u = t + 1; u < t + kAtOnce; ++u) same &= parts[u].has_steps == parts[t].has_steps;
      if (same)
        one(RowCount<kAtOnce>(), t);
      else
        for (int64_t u = t; u < t + kAtOnce; ++u) one(RowCount<1>(), u);
    }
  for (; t < tile; ++t) one(RowCount<1>(), t);
}

template <class V, BlockCode Code>
void block_gemm(const BlockRows& w, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
                int64_t out_stride, bool accumulate) {
  const BlockX all{static_cast<const char*>(rows), x_stride, Quant::groups(k)};
  Decoded parts[kTile];
  for (int64_t first = 0; first < m; first += kMostX) {
    const int64_t count = m - first < kMostX ? m - first : kMostX;
    const BlockX x = all.from(first);
    for (int64_t i = 0; i < n; i += kTile) {
      const int64_t tile = n - i < kTile ? n - i : kTile;
      Lanes acc[kTile][kMostX], low[kTile][has_minimums(Code) ? kMostX : 1];
      for (int64_t t = 0; t < tile; ++t)
        for (int64_t j = 0; j < count; ++j)
          for (int l = 0; l < 8; ++l) {
            acc[t][j][l] = 0;
            if (has_minimums(Code)) low[t][j][l] = 0;
          }
      for (int64_t begin = 0; begin < k; begin += kChunk) {
        const int64_t columns = k - begin < kChunk ? k - begin : kChunk, g = begin / kGroup;
        int64_t groups = 0;
        for (int64_t t = 0; t < tile; ++t) groups = decode<V, Code>(w, i + t, begin, columns, parts[t]);
        in_passes<V::kRows>(count, [&](auto r, int64_t j) {
          for_tile<V, Code, r.number>(parts, tile, [&](auto rows_of_w, int64_t t, auto steps) {
            Lanes* to[rows_of_w.number];
            for (int u = 0; u < rows_of_w.number; ++u) to[u] = acc[t + u] + j;
            V::template add<Code, rows_of_w.number, r.number, steps.value>(parts + t, groups, x.from(j), g, to);
          });
        });
        if constexpr (has_minimums(Code))
          for (int64_t j = 0; j < count; ++j)
            for (int64_t t = 0; t < tile; ++t)
              V::add_minimums(parts[t].minimums, x.factors(j) + g * kGroupRuns, groups * kGroupRuns, low[t][j]);
      }
      for (int64_t j = 0; j < count; ++j)
        for (int64_t t = 0; t < tile; ++t) {
          float sum = fold(acc[t][j]);
          if (has_minimums(Code)) sum -= fold(low[t][j]);
          float* to = out + (first + j) * out_stride + i + t;
          *to = accumulate ? *to + sum : sum;
        }
    }
  }
}

// Packs columns [begin, begin + n) of m rows, in plain operations, so that all instruction sets agree.
inline void pack_blocks(const float* const* x, int64_t m, int64_t begin, int64_t n, void* out, int64_t x_stride) {
  const int64_t groups = Blocks::x_groups(x_stride);
  for (int64_t j = 0; j < m; ++j) {
    char* row = static_cast<char*>(out) + j * x_stride;
    float* scales = const_cast<float*>(Blocks::x_scales(row, groups));
    float* factors = const_cast<float*>(Blocks::x_factors(row, groups));
    for (int64_t p = 0; p < n; p += kGroup) {
      const int64_t g = (begin + p) / kGroup;
      int8_t q[kGroup];
      scales[g] = quantize_x(x[j] + p, n - p, q);
      std::memcpy(row + g * kGroup, q, sizeof q);
      for (int64_t r = 0; r < kGroupRuns; ++r) {
        int32_t sum = 0;
        for (int64_t i = 0; i < kRun; ++i) sum += q[r * kRun + i];
        factors[g * kGroupRuns + r] = float(sum) * scales[g];
      }
    }
  }
}

template <class V>
void gemm(const BlockRows& w, int64_t n, const void* x, int64_t x_stride, int64_t m, int64_t k, float* out, int64_t out_stride,
          bool accumulate, const void*) {
  with_code(w.code, [&](auto code) { block_gemm<V, code.value>(w, n, x, x_stride, m, k, out, out_stride, accumulate); });
}

}  // namespace
