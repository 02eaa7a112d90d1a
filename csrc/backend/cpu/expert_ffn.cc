// expert_ffn(): the grouped expert GEMM over the active experts, in four passes.
//   0. gather   the rows of each expert, packed as one group                  task: (active expert, block of H)
//   1. gate_up  hidden[row] = silu(x . gate) * (x . up)   task: (active expert, block of I)
//   2. down     expert_out[row] = hidden[row] . down      task: (active expert, block of H)
//   3. combine  out[t] += sum_j weights[t, j] * expert_out[row of (t, j)], j ascending: a gather, so the same bits always
// Rows are the dispatch plan's: an expert's rows are a group, so its weights are read once for all of them.
// Bytes: gate, up and down of the active experts. Limit: memory bandwidth while experts have few rows.
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

namespace {

constexpr int64_t kTileRows = 64;      // x rows per gate/up tile: the tile stays in cache
constexpr int64_t kPackColumns = 512;  // of the rows of an expert that one task packs

}  // namespace

void CpuBackend::do_expert_ffn(const float* x, int64_t num_rows, std::span<const ExpertWeights> experts, const RouterRule& rule,
                               const Routing& routing, const DispatchPlan& plan, float* out) {
  int64_t hidden = experts[0].gate.cols, width = experts[0].gate.rows, k = rule.top_k;
  int64_t pairs = plan.offsets[rule.num_experts], active = routing.num_active;
  if (pairs == 0) return;

  const Product &into = product(experts[0].gate), &down = product(experts[0].down);

  RowGroup gathered{nullptr, into.row_bytes(hidden)}, activated{nullptr, down.row_bytes(width)};
  gathered.data = gathered_.get(pairs * gathered.row_bytes);
  activated.data = hidden_.get(pairs * activated.row_bytes);

  const int64_t pieces = ceil_div(hidden, kPackColumns);
  pool_.parallel_for(active * pieces, [&](int64_t task, int) {
    const int32_t e = routing.active[task / pieces];
    const int64_t begin = task % pieces * kPackColumns, count = std::min(kPackColumns, hidden - begin);
    for (int64_t r = plan.offsets[e]; r < plan.offsets[e + 1]; r += RowGroup::kRows) {
      const int64_t m = std::min<int64_t>(RowGroup::kRows, plan.offsets[e + 1] - r);
      const float* rows[RowGroup::kRows];
      for (int64_t j = 0; j < m; ++j) rows[j] = x + plan.pair_of_row[r + j] / k * hidden + begin;
      into.pack(rows, m, begin, count, gathered.from(r));
    }
  });

  int64_t block = round_up(into.rows_per_task(2 * experts[0].gate.row_bytes(), std::min(width, balanced_rows(active * width))),
                           down.pack_step());
  int64_t blocks = ceil_div(width, block);
  pool_.parallel_for(active * blocks, [&](int64_t task, int thread) {
    int32_t e = routing.active[task / blocks];
    int64_t begin = task % blocks * block, count = std::min(block, width - begin);
    const ExpertWeights& w = experts[size_t(e)];
    float* gate = tile_[size_t(thread)].get(2 * kTileRows * block);
    float* up = gate + kTileRows * block;
    for (int64_t r = plan.offsets[e]; r < plan.offsets[e + 1]; r += kTileRows) {
      int64_t m = std::min<int64_t>(kTileRows, plan.offsets[e + 1] - r);
      into.run(w.gate, begin, count, gathered.from(r), m, gate, block, false);
      into.run(w.up, begin, count, gathered.from(r), m, up, block, false);
      const float* rows[kTileRows];
      for (int64_t j = 0; j < m; ++j) {
        kernels_.silu_mul(gate + j * block, up + j * block, count, gate + j * block);
        rows[j] = gate + j * block;
      }
      down.pack(rows, m, begin, count, activated.from(r));
    }
  });

  float* expert_out = expert_out_.get(pairs * hidden);
  int64_t down_block = down.rows_per_task(experts[0].down.row_bytes(), std::min(hidden, balanced_rows(active * hidden))),
          down_blocks = ceil_div(hidden, down_block);
  pool_.parallel_for(active * down_blocks, [&](int64_t task, int) {
    int32_t e = routing.active[task / down_blocks];
    int64_t begin = task % down_blocks * down_block, count = std::min(down_block, hidden - begin);
    int64_t first = plan.offsets[e];
    down.run(experts[size_t(e)].down, begin, count, activated.from(first), plan.offsets[e + 1] - first,
             expert_out + first * hidden + begin, hidden, false);
  });

  pool_.parallel_for(num_rows, [&](int64_t t, int thread) {
    float* sum = tile_[size_t(thread)].get(hidden);
    std::memset(sum, 0, size_t(hidden) * 4);
    for (int64_t j = 0; j < k; ++j) {
      int32_t r = plan.row_of_pair[t * k + j];
      if (r >= 0) kernels_.axpy(routing.weights[t * k + j], expert_out + r * hidden, hidden, sum);
    }
    kernels_.axpy(1.0f, sum, hidden, out + t * hidden);
  });
}

void CpuBackend::do_mlp(const float* x, int64_t num_rows, const ExpertWeights& weights, float* out) {
  int32_t* rows = mlp_rows_.get(num_rows);
  float* ones = mlp_weights_.get(num_rows);
  for (int64_t t = 0; t < num_rows; ++t) {
    rows[t] = int32_t(t);
    ones[t] = 1.0f;
  }
  int32_t active = 0, offsets[2] = {0, int32_t(num_rows)};
  Routing routing{nullptr, ones, &active, 1};
  DispatchPlan plan{offsets, rows, rows};
  do_expert_ffn(x, num_rows, {&weights, 1}, RouterRule{1, 1, true}, routing, plan, out);
}

}  // namespace lynx_rt
