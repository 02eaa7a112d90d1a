// Products with weights in blocks (blocks.h), panel by panel, for instruction sets with registers of eight rows.
//
// A class V is one of blocks_decode_inl.h and of blocks_panel_inl.h, and has
//   most<Code>()   rows of x of a pass at most
//   add<Code, scaling, R>(panel, runs, x, first, out)
//                  out[j][row] += the product of the panel's rows with R rows of x, of which run `first` is the panel's first
#pragma once
#include "backend/cpu/kernels/blocks_inl.h"
#include "backend/cpu/kernels/blocks_panel_inl.h"
#include "backend/cpu/kernels/passes.h"

namespace {

constexpr int64_t kMostX = 64;  // rows of x for which a panel is decoded once; their sums stay in the first-level cache

using PanelSums = float[kPanel];

// The eight rows of a part of a panel. The last rows of a matrix are part of eight that have been multiplied before; a
// matrix of fewer rows gives eight times the same one, with stride 0.
struct Part {
  int64_t row, stride, skip, count;  // `count` rows after the first `skip` are new
};

inline Part part_at(int64_t row, int64_t n) {
  if (row + kEight <= n) return {row, 1, 0, kEight};
  if (row >= n) return {n - kEight, 1, 0, 0};
  return {n - kEight, 1, kEight - (n - row), n - row};
}

template <class V, BlockCode Code, Scaling kScaling>
void panel_gemm(const BlockRows& w, int64_t n, const BlockX& all, int64_t m, int64_t k, float* out, int64_t out_stride,
                bool accumulate) {
  Panel panel;
  const int64_t rows = n < kEight ? 1 : kPanel;
  for (int64_t first = 0; first < m; first += kMostX) {
    const int64_t count = m - first < kMostX ? m - first : kMostX;
    const BlockX x = all.from(first);
    for (int64_t i = 0; i < n; i += rows) {
      const Part parts[2] = {n < kEight ? Part{i, 0, 0, 1} : part_at(i, n),
                             n < kEight ? Part{i, 0, 0, 0} : part_at(i + kEight, n)};
      alignas(64) PanelSums sums[kMostX];
      for (int64_t j = 0; j < count; ++j)
        for (float& sum : sums[j]) sum = 0;
      for (int64_t begin = 0; begin < k; begin += kPanelColumns) {
        const int64_t runs = (k - begin < kPanelColumns ? k - begin : kPanelColumns) / kRun;
        for (int h = 0; h < 2; ++h)
          EightRows<V>(panel, h * kEight, w, parts[h].row, parts[h].stride).template decode<Code>(begin, runs, k);
        in_passes<V::template most<Code>()>(count, [&](auto r, int64_t j) {
          V::template add<Code, kScaling, r.number>(panel, runs, x.from(j), begin / kRun, sums + j);
        });
      }
      for (int h = 0; h < 2; ++h)
        for (int64_t j = 0; j < count; ++j)
          for (int64_t l = parts[h].skip; l < parts[h].skip + parts[h].count; ++l) {
            float* to = out + (first + j) * out_stride + parts[h].row + l;
            const float sum = sums[j][h * kEight + l];
            *to = accumulate ? *to + sum : sum;
          }
    }
  }
}

template <class V>
void gemm(const BlockRows& w, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out, int64_t out_stride,
          bool accumulate) {
  const BlockX x{static_cast<const char*>(rows), x_stride, Quant::groups(k)};
  with_code(w.code, [&](auto code) {
    constexpr BlockCode kCode = code.value;
    if constexpr (always_steps(kCode)) return panel_gemm<V, kCode, Scaling::kSteps>(w, n, x, m, k, out, out_stride, accumulate);
    if constexpr (may_have_steps(kCode))
      if (w.group % kGroup == 0) return panel_gemm<V, kCode, Scaling::kGroups>(w, n, x, m, k, out, out_stride, accumulate);
    if constexpr (!always_steps(kCode)) panel_gemm<V, kCode, Scaling::kRuns>(w, n, x, m, k, out, out_stride, accumulate);
  });
}

}  // namespace
