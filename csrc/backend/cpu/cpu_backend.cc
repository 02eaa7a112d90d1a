// Construction and memory of the CPU backend, and the ops that are a loop over rows.
#include "backend/cpu/cpu_backend.h"

#include <algorithm>

#include "base/memory.h"
#include "routing/dispatch.h"

namespace lynx_rt {

namespace {

constexpr int64_t kNormRows = 16;     // rows of a task
constexpr int64_t kCapValues = 4096;  // logits of a task

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options, const ThreadPlan& plan)
    : compute_dtype_(options.compute_dtype),
      kernels_(cpu::kernels_for(resolve_isa(options.isa))),
      quant_kernels_(cpu::quant_kernels_for(kernels_.isa)),
      block_kernels_(cpu::block_kernels_for(kernels_.isa)),
      products_{{Product(kernels_, compute_dtype_, DType::kF32, &block_kernels_),
                 Product(kernels_, compute_dtype_, DType::kBF16, &block_kernels_),
                 Product(kernels_, compute_dtype_, DType::kF16, &block_kernels_), Product(quant_kernels_, QuantFormat::kInt8),
                 Product(quant_kernels_, QuantFormat::kInt4), Product(block_kernels_)}},
      pool_(plan),
      balanced_tasks_(plan.balanced_tasks()),
      quantization_(options.quantization),
      int8_activations_(options.int8_activations),
      store_(options.quantization_cache),
      tile_(size_t(pool_.num_threads())),
      query_(size_t(pool_.num_threads())),
      decoded_(size_t(pool_.num_threads())),
      drawers_(size_t(pool_.num_threads()), TokenDrawer(kernels_.draw)) {}

std::string CpuBackend::description() const {
  return str_cat("cpu ", isa_name(kernels_.isa), ", ", pool_.num_threads(), " threads, ", dtype_name(compute_dtype_));
}

// Pages cost memory only when they are touched, so a large KV cache costs what is used of it.
void* CpuBackend::allocate(int64_t bytes, const char* what) { return allocate_pages(bytes, what); }

void CpuBackend::release(void* p, int64_t bytes) noexcept { release_pages(p, bytes); }

Backend::MemoryBudget CpuBackend::memory_budget() const {
  const int64_t free = free_memory_bytes();
  return {free / 2, free};
}

RowGroup CpuBackend::pack_rows(const Product& product, const float* x, int64_t num_rows, int64_t n, Scratch<char>& buffer) {
  RowGroup out{nullptr, product.row_bytes(n)};
  out.data = buffer.get(num_rows * out.row_bytes);
  pool_.parallel_for(ceil_div(num_rows, RowGroup::kRows), [&](int64_t task, int) {
    const int64_t first = task * RowGroup::kRows, m = std::min(RowGroup::kRows, num_rows - first);
    const float* rows[RowGroup::kRows];
    for (int64_t j = 0; j < m; ++j) rows[j] = x + (first + j) * n;
    product.pack(rows, m, 0, n, out.from(first));
  });
  return out;
}

void CpuBackend::do_embed(const WeightView& table, const int32_t* ids, int64_t num_rows, float* out, float scale) {
  for (int64_t t = 0; t < num_rows; ++t) {
    float* row = out + t * table.cols;
    if (table.format == QuantFormat::kBlocks && kind(table) != WeightKind::kBlocks)
      product(table).decode_row(table, ids[t], row);
    else if (table.format == QuantFormat::kBlocks)
      block_kernels_.values(table.blocks, ids[t], table.cols, row);
    else
      kernels_.to_f32(table.row(ids[t]), table.dtype, table.cols, row);
    if (scale != 1)
      for (int64_t i = 0; i < table.cols; ++i) row[i] *= scale;
  }
}

void CpuBackend::do_rmsnorm(const float* x, const WeightView& weight, float eps, int64_t num_rows, const RowsOut& out,
                            const ExpertSum&) {
  const int64_t n = weight.cols;
  pool_.parallel_for(ceil_div(num_rows, kNormRows), [&](int64_t task, int) {
    for (int64_t t = task * kNormRows; t < std::min(num_rows, (task + 1) * kNormRows); ++t)
      kernels_.rmsnorm(x + t * n, weight.data, weight.dtype, n, eps, out.f32 + t * n);
  });
}

void CpuBackend::do_add_rmsnorm(const float* y, const WeightView& weight, float eps, int64_t num_rows, bool accumulate, float* x,
                                const WeightView& scale, const ExpertSum&) {
  const int64_t n = weight.cols;
  float by = 1;
  if (!scale.empty()) kernels_.to_f32(scale.data, scale.dtype, 1, &by);
  pool_.parallel_for(ceil_div(num_rows, kNormRows), [&](int64_t task, int thread) {
    for (int64_t t = task * kNormRows; t < std::min(num_rows, (task + 1) * kNormRows); ++t) {
      float *row = x + t * n, *normed = accumulate ? tile_[size_t(thread)].get(n) : row;
      kernels_.rmsnorm(y + t * n, weight.data, weight.dtype, n, eps, normed);
      if (accumulate) kernels_.axpy(1, normed, n, row);
      if (by != 1)
        for (int64_t i = 0; i < n; ++i) row[i] *= by;
    }
  });
}

void CpuBackend::do_layernorm(const float* x, const WeightView& weight, const WeightView& bias, float eps, int64_t num_rows,
                              const RowsOut& out, const ExpertSum&) {
  const int64_t n = weight.cols;
  pool_.parallel_for(ceil_div(num_rows, kNormRows), [&](int64_t task, int) {
    for (int64_t t = task * kNormRows; t < std::min(num_rows, (task + 1) * kNormRows); ++t)
      kernels_.layernorm(x + t * n, weight.data, weight.dtype, bias.data, bias.dtype, n, eps, out.f32 + t * n);
  });
}

BatchView CpuBackend::do_begin_step(const BatchView& batch) {
  stats_.clear();
  return batch;
}

void CpuBackend::do_route(const float* scores, const BatchView& batch, const RouterRule& rule, const Selection& selection,
                          Routing& routing, DispatchPlan& plan, const uint8_t* cost) {
  stats_.push_back(selector_.run(scores, batch.num_rows, rule, selection, batch.phase, batch.exact, routing, batch.groups, cost));
  dispatch_pairs(routing, batch.num_rows, rule, plan);
}

void CpuBackend::do_end_step(std::span<SelectionStats> stats) { std::copy_n(stats_.begin(), stats.size(), stats.begin()); }

void CpuBackend::do_soft_cap(float* values, int64_t count, float cap) {
  pool_.parallel_for(ceil_div(count, kCapValues), [&](int64_t task, int) {
    const int64_t begin = task * kCapValues;
    kernels_.soft_cap(values + begin, std::min(kCapValues, count - begin), cap);
  });
}

void CpuBackend::do_gather_rows(const float* x, std::span<const int32_t> rows, int64_t hidden_size, float* out) {
  for (size_t i = 0; i < rows.size(); ++i) std::copy_n(x + rows[i] * hidden_size, hidden_size, out + int64_t(i) * hidden_size);
}

void CpuBackend::do_set_rows(const float* from, int64_t from_stride, int64_t num_rows, int64_t num_columns, bool accumulate,
                             float* x) {
  pool_.parallel_for(num_rows, [&](int64_t t, int) {
    const float* row = from + t * from_stride;
    if (accumulate)
      kernels_.axpy(1, row, num_columns, x + t * num_columns);
    else
      std::copy_n(row, num_columns, x + t * num_columns);
  });
}

void CpuBackend::do_sample(const float* logits, std::span<const DrawParams> params, std::span<const int32_t> masks,
                           int64_t vocab_size, int32_t* tokens) {
  pool_.parallel_for(int64_t(params.size()), [&](int64_t i, int thread) {
    const DrawParams& p = params[size_t(i)];
    const int32_t* mask = p.mask_row < 0 ? nullptr : masks.data() + p.mask_row * token_mask_words(vocab_size);
    tokens[i] = drawers_[size_t(thread)].draw(logits + i * vocab_size, vocab_size, p, mask);
  });
}

}  // namespace lynx_rt
