// expert_ffn(): the grouped expert GEMM over the active experts, in three passes.
//   1. gate_up  hidden[row] = silu(x . gate) * (x . up)   task: (active expert, block of I)
//   2. down     expert_out[row] = hidden[row] . down      task: (active expert, block of H)
//   3. combine  out[t] += sum_j weights[t, j] * expert_out[row of (t, j)], j ascending: a gather, so the same bits always
// Rows are the dispatch plan's: an expert's rows are consecutive, so its weights are read once for all of them.
// Bytes: gate, up and down of the active experts. Limit: memory bandwidth while experts have few rows.
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

namespace {

constexpr int64_t kTileRows = 32;  // x rows per gate/up tile: the tile stays in the first-level cache

}  // namespace

void CpuBackend::do_expert_ffn(const float* x, int64_t num_rows, std::span<const ExpertWeights> experts, const RouterRule& rule,
                               const Routing& routing, const DispatchPlan& plan, float* out) {
  int64_t hidden = experts[0].gate.cols, width = experts[0].gate.rows, k = rule.top_k;
  DType w_dtype = experts[0].gate.dtype, down_dtype = experts[0].down.dtype;
  int64_t pairs = plan.offsets[rule.num_experts], active = routing.num_active;
  if (pairs == 0) return;

  const void* const* x_rows = pack_rows(x, num_rows, hidden, w_dtype, packed_[int(w_dtype)], packed_rows_[int(w_dtype)]);
  const void** gathered = gathered_rows_.get(pairs);
  for (int64_t r = 0; r < pairs; ++r) gathered[r] = x_rows[plan.pair_of_row[r] / k];

  int64_t hidden_bytes = round_up(packed_bytes(down_dtype, width), 64);
  char* hidden_data = hidden_.get(pairs * hidden_bytes);
  const void** hidden_rows = hidden_rows_.get(pairs);
  for (int64_t r = 0; r < pairs; ++r) hidden_rows[r] = hidden_data + r * hidden_bytes;

  int64_t block = std::min(width, cached_rows(2 * experts[0].gate.row_bytes())), blocks = ceil_div(width, block);
  pool_.parallel_for(active * blocks, [&](int64_t task, int thread) {
    int32_t e = routing.active[task / blocks];
    int64_t begin = task % blocks * block, count = std::min(block, width - begin);
    const ExpertWeights& w = experts[size_t(e)];
    float* gate = tile_[size_t(thread)].get(2 * kTileRows * block);
    float* up = gate + kTileRows * block;
    for (int64_t r = plan.offsets[e]; r < plan.offsets[e + 1]; r += kTileRows) {
      int64_t m = std::min<int64_t>(kTileRows, plan.offsets[e + 1] - r);
      gemm(w_dtype)(w.gate.row(begin), w.gate.row_bytes(), count, gathered + r, m, hidden, gate, block, false);
      gemm(w_dtype)(w.up.row(begin), w.up.row_bytes(), count, gathered + r, m, hidden, up, block, false);
      for (int64_t j = 0; j < m; ++j) {
        kernels_.silu_mul(gate + j * block, up + j * block, count, gate + j * block);
        pack_row(gate + j * block, count, down_dtype, hidden_data + (r + j) * hidden_bytes + packed_bytes(down_dtype, begin));
      }
    }
  });

  float* expert_out = expert_out_.get(pairs * hidden);
  int64_t down_block = std::min(hidden, cached_rows(experts[0].down.row_bytes())), down_blocks = ceil_div(hidden, down_block);
  pool_.parallel_for(active * down_blocks, [&](int64_t task, int) {
    int32_t e = routing.active[task / down_blocks];
    int64_t begin = task % down_blocks * down_block, count = std::min(down_block, hidden - begin);
    const WeightView& w = experts[size_t(e)].down;
    int64_t first = plan.offsets[e];
    gemm(down_dtype)(w.row(begin), w.row_bytes(), count, hidden_rows + first, plan.offsets[e + 1] - first, width,
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
