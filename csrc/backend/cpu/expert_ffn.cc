// expert_ffn(): the grouped expert GEMM over the active experts, in four passes.
//   0. gather   the rows of each expert, packed as one group                  task: (active expert, block of H)
//   1. gate_up  hidden[row] = activation(x . gate, x . up)   task: (active expert, block of I)
//   2. down     expert_out[row] = hidden[row] . down         task: (active expert, block of H)
//   3. combine  out[t] += sum_j weights[t, j] * expert_out[row of (t, j)], j ascending: a gather in a fixed order, so the same bits
// Rows are in the order of the dispatch plan: an expert's rows are neighbours and form a group, so its weights are read once for all
// of them. Each expert is multiplied in its own format, for which its group is packed; all groups get the space per row of the
// longest form.
// Bytes: gate, up and down of the active experts. Limit: memory bandwidth while experts have few rows.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

namespace {

constexpr int64_t kTileRows = 96;      // x rows per gate/up tile: the tile stays in cache, and is whole register tiles of 6 rows
constexpr int64_t kPackColumns = 512;  // columns of an expert's rows that one task packs

// Returns the address of element `begin` of a bias.
const void* at(const WeightView& bias, int64_t begin) {
  return static_cast<const char*>(bias.data) + begin * dtype_size(bias.dtype);
}

}  // namespace

const void* CpuBackend::do_expert_table(std::span<const ExpertWeights> experts) {
  for (size_t e = 0; e < experts.size(); ++e)
    for (const WeightView* w : {&experts[e].gate, &experts[e].down})
      if (w->format == QuantFormat::kPacked)
        fail(ErrorCode::kUnsupported, "experts", "experts: expert ", e, " is ", quant_format_name(w->format),
             ", which the CPU does not multiply");
  return nullptr;
}

ExpertSum CpuBackend::do_expert_ffn(const RowsIn& x, int64_t num_rows, const ExpertTable& experts, const RouterRule& rule,
                                    const FfnRule& ffn, const Routing& routing, const DispatchPlan& plan, float* out,
                                    bool accumulate) {
  run_experts(x, num_rows, experts.all(), rule.top_k, ffn, routing, plan, out, experts.hidden_size(), accumulate,
              experts.store());
  return {};
}

struct CpuBackend::ExpertCall {
  const CpuBackend& backend;
  std::span<const ExpertWeights> experts;
  const FfnRule& ffn;
  const Routing& routing;
  const DispatchPlan& plan;
  int64_t hidden, width, out_columns;
  // Every row has the space of the longest form that an active expert needs.
  int64_t gathered_bytes = 0, activated_bytes = 0;
  char *gathered = nullptr, *activated = nullptr;
  float* out = nullptr;  // [pairs, out_columns]

  int64_t first_row(int32_t e) const { return plan.offsets[e]; }
  int64_t num_rows(int32_t e) const { return plan.offsets[e + 1] - plan.offsets[e]; }
  // The group of an expert's rows that enter gate and up, and down.
  RowGroup rows_into(int32_t e) const {
    return {gathered + first_row(e) * gathered_bytes, backend.product(experts[size_t(e)].gate).row_bytes(hidden)};
  }
  RowGroup rows_down(int32_t e) const {
    return {activated + first_row(e) * activated_bytes, backend.product(experts[size_t(e)].down).row_bytes(width)};
  }
};

void CpuBackend::run_experts(const RowsIn& x, int64_t num_rows, std::span<const ExpertWeights> experts, int64_t k,
                             const FfnRule& ffn, const Routing& routing, const DispatchPlan& plan, float* out, int64_t out_stride,
                             bool accumulate, ExpertStore* store) {
  const int64_t pairs = plan.offsets[experts.size()];
  if (pairs == 0) {
    for (int64_t t = 0; t < num_rows && !accumulate; ++t) std::fill_n(out + t * out_stride, experts[0].down.rows, 0.0f);
    return;
  }
  const std::span<const int32_t> active(routing.active, size_t(routing.num_active));
  ExpertCall call{*this, experts, ffn, routing, plan, experts[0].gate.cols, experts[0].gate.rows, experts[0].down.rows};
  const int64_t hidden = call.hidden, columns = call.out_columns;
  for (const int32_t e : active) {
    call.gathered_bytes = std::max(call.gathered_bytes, product(experts[size_t(e)].gate).row_bytes(hidden));
    call.activated_bytes = std::max(call.activated_bytes, product(experts[size_t(e)].down).row_bytes(call.width));
  }
  call.gathered = gathered_.get(pairs * call.gathered_bytes);
  call.activated = hidden_.get(pairs * call.activated_bytes);
  call.out = expert_out_.get(pairs * columns);

  const int64_t pieces = ceil_div(hidden, kPackColumns);
  pool_.parallel_for(int64_t(active.size()) * pieces, [&](int64_t task, int) {
    const int32_t e = active[size_t(task / pieces)];
    const int64_t begin = task % pieces * kPackColumns, count = std::min(kPackColumns, hidden - begin);
    const Product& into = product(experts[size_t(e)].gate);
    const RowGroup group = call.rows_into(e);
    for (int64_t r = plan.offsets[e]; r < plan.offsets[e + 1]; r += RowGroup::kRows) {
      const int64_t m = std::min<int64_t>(RowGroup::kRows, plan.offsets[e + 1] - r);
      const float* rows[RowGroup::kRows];
      for (int64_t j = 0; j < m; ++j) rows[j] = x.f32 + plan.pair_of_sorted[r + j] / k * hidden + begin;
      into.pack(rows, m, begin, count, group.from(r - plan.offsets[e]));
    }
  });

  if (store) {
    for (std::span<const int32_t> list = store->next(); !list.empty(); list = store->next()) {
      gate_up(call, list);
      down(call, list);
    }
  } else {
    gate_up(call, active);
    down(call, active);
  }

  pool_.parallel_for(num_rows, [&](int64_t t, int thread) {
    float* sum = tile_[size_t(thread)].get(columns);
    std::memset(sum, 0, size_t(columns) * 4);
    for (int64_t j = 0; j < k; ++j) {
      int32_t r = plan.sorted_of_pair[t * k + j];
      if (r < 0) continue;
      float weight = ffn.scale_input ? 1.0f : routing.weights[t * k + j];
      if (ffn.expert_scale) weight *= ffn.expert_scale[routing.ids[t * k + j]];
      kernels_.axpy(weight, call.out + r * columns, columns, sum);
    }
    if (accumulate)
      kernels_.axpy(1.0f, sum, columns, out + t * out_stride);
    else
      std::copy_n(sum, columns, out + t * out_stride);
  });
}

void CpuBackend::gate_up(const ExpertCall& call, std::span<const int32_t> list) {
  const int64_t num_experts = int64_t(list.size());
  // Every task has a size that suits the formats of all experts.
  int64_t block = INT64_MAX, step = 1;
  for (const int32_t e : list) {
    const ExpertWeights& w = call.experts[size_t(e)];
    const Product& into = product(w.gate);
    const int64_t most = std::min(call.width, balanced_rows(num_experts * call.width));
    block = std::min(block, into.rows_per_task((w.up.empty() ? 1 : 2) * w.gate.row_bytes(), most, call.num_rows(e)));
    step = std::max({step, into.tile_rows(), product(w.down).pack_step()});  // powers of two: the largest is a multiple of each
  }
  block = round_up(block, step);
  const int64_t blocks = ceil_div(call.width, block);
  pool_.parallel_runs(num_experts * blocks, [&](int64_t task, int thread) {
    const int32_t e = list[size_t(task / blocks)];
    const int64_t begin = task % blocks * block, count = std::min(block, call.width - begin);
    const ExpertWeights& w = call.experts[size_t(e)];
    const Product &into = product(w.gate), &down = product(w.down);
    const RowGroup from = call.rows_into(e), to = call.rows_down(e);
    const void* next_task = nullptr;  // where the weights of the next task begin
    if (task + 1 < num_experts * blocks)
      next_task = call.experts[size_t(list[size_t((task + 1) / blocks)])].gate.row((task + 1) % blocks * block);
    Scratch<char>* scratch = &decoded_[size_t(thread)];
    float* gate = tile_[size_t(thread)].get((2 * kTileRows + 2) * block);
    float *up = gate + kTileRows * block, *gate_bias = up + kTileRows * block, *up_bias = gate_bias + block;
    const bool biased = !w.gate_bias.empty(), gated = !w.up.empty();
    if (biased) kernels_.to_f32(at(w.gate_bias, begin), w.gate_bias.dtype, count, gate_bias);
    if (biased && gated) kernels_.to_f32(at(w.up_bias, begin), w.up_bias.dtype, count, up_bias);
    const int64_t rows_of_expert = call.num_rows(e);
    for (int64_t r = 0; r < rows_of_expert; r += kTileRows) {
      const int64_t m = std::min<int64_t>(kTileRows, rows_of_expert - r);
      const void* next = r + m < rows_of_expert ? w.gate.row(begin) : next_task;
      into.run(w.gate, begin, count, from.from(r), m, gate, block, false, gated ? w.up.row(begin) : next, scratch);
      if (gated) into.run(w.up, begin, count, from.from(r), m, up, block, false, next, scratch);
      const float* rows[kTileRows];
      for (int64_t j = 0; j < m; ++j) {
        float *g = gate + j * block, *u = up + j * block;
        if (call.ffn.scale_input) {  // scaling the products scales the input
          const float weight = call.routing.weights[call.plan.pair_of_sorted[call.first_row(e) + r + j]];
          for (int64_t i = 0; i < count; ++i) g[i] *= weight;
          for (int64_t i = 0; gated && i < count; ++i) u[i] *= weight;
        }
        if (biased) kernels_.axpy(1.0f, gate_bias, count, g);
        if (biased && gated) kernels_.axpy(1.0f, up_bias, count, u);
        switch (call.ffn.activation) {
          case Activation::kRelu2:
            for (int64_t i = 0; i < count; ++i) g[i] = g[i] < 0 ? 0.0f : g[i] * g[i];  // a NaN stays one
            break;
          case Activation::kSilu: kernels_.silu_mul(g, u, count, g); break;
          case Activation::kGeluTanh: kernels_.gelu_tanh_mul(g, gated ? u : nullptr, count, g); break;
          case Activation::kGelu: kernels_.gelu(g, count); break;
          case Activation::kClampedSwiglu: kernels_.clamped_swiglu(g, u, count, call.ffn.alpha, call.ffn.limit, g); break;
        }
        rows[j] = g;
      }
      down.pack(rows, m, begin, count, to.from(r));
    }
  });
}

void CpuBackend::down(const ExpertCall& call, std::span<const int32_t> list) {
  const int64_t num_experts = int64_t(list.size()), columns = call.out_columns;
  int64_t block = INT64_MAX, step = 1;
  for (const int32_t e : list) {
    const WeightView& w = call.experts[size_t(e)].down;
    block = std::min(block, product(w).rows_per_task(w.row_bytes(), std::min(columns, balanced_rows(num_experts * columns)),
                                                     call.num_rows(e)));
    step = std::max(step, product(w).tile_rows());
  }
  block = round_up(block, step);
  const int64_t blocks = ceil_div(columns, block);
  pool_.parallel_runs(num_experts * blocks, [&](int64_t task, int thread) {
    const int32_t e = list[size_t(task / blocks)];
    const ExpertWeights& w = call.experts[size_t(e)];
    const int64_t begin = task % blocks * block, count = std::min(block, columns - begin), m = call.num_rows(e);
    const void* next_task = nullptr;
    if (task + 1 < num_experts * blocks)
      next_task = call.experts[size_t(list[size_t((task + 1) / blocks)])].down.row((task + 1) % blocks * block);
    float* to = call.out + call.first_row(e) * columns + begin;
    product(w.down).run(w.down, begin, count, call.rows_down(e), m, to, columns, false, next_task, &decoded_[size_t(thread)]);
    if (w.down_bias.empty()) return;
    float* bias = tile_[size_t(thread)].get(count);
    kernels_.to_f32(at(w.down_bias, begin), w.down_bias.dtype, count, bias);
    for (int64_t j = 0; j < m; ++j) kernels_.axpy(1.0f, bias, count, to + j * columns);
  });
}

// A dense MLP is run as one expert that takes every row, with the weight `scale`, times the row's gate where there is one.
void CpuBackend::do_mlp(const RowsIn& x, int64_t num_rows, const ExpertWeights& weights, const WeightView& row_gate, float* out,
                        Activation activation, bool accumulate, float scale, int64_t out_stride) {
  int32_t* rows = mlp_rows_.get(num_rows);
  float* row_weights = mlp_weights_.get(num_rows);
  if (!row_gate.empty()) do_router(x.f32, row_gate, {}, num_rows, row_weights, 1);
  for (int64_t t = 0; t < num_rows; ++t) {
    rows[t] = int32_t(t);
    row_weights[t] = row_gate.empty() ? scale : scale / (1.0f + std::exp(-row_weights[t]));
  }
  int32_t active = 0, offsets[2] = {0, int32_t(num_rows)};
  Routing routing{nullptr, row_weights, &active, 1};
  DispatchPlan plan{offsets, rows, rows};
  run_experts(x, num_rows, {&weights, 1}, 1, {.activation = activation}, routing, plan, out, out_stride, accumulate);
}

}  // namespace lynx_rt
