// linear(): out[t, n] (+)= x[t] . weight[n]. Work split: a task multiplies a block of weight rows of one part, small enough for the
// second-level cache, with all rows of x. Each weight row is read from memory once per call, by one thread.
// Bytes: the weights. Limit: memory bandwidth for few rows, the dot-product rate for many.
#include "backend/cpu/cpu_backend.h"

#include <algorithm>

namespace lynx_rt {

namespace {

// out[t * stride + i] += bias[begin + i] for i < count.
void add_bias(const cpu::Kernels& kernels, const WeightView& bias, int64_t begin, int64_t count, int64_t num_rows, float* out,
              int64_t stride) {
  if (bias.empty()) return;
  constexpr int64_t kColumns = 256;
  float values[kColumns];
  for (int64_t i = 0; i < count; i += kColumns) {
    const int64_t n = std::min(kColumns, count - i);
    kernels.to_f32(static_cast<const char*>(bias.data) + (begin + i) * dtype_size(bias.dtype), bias.dtype, n, values);
    for (int64_t t = 0; t < num_rows; ++t) kernels.axpy(1.0f, values, n, out + t * stride + i);
  }
}

}  // namespace

void CpuBackend::do_linear(const RowsIn& x, int64_t num_rows, std::span<const LinearPart> parts, bool accumulate, float* out,
                           int64_t out_stride, float scale) {
  int64_t k = parts[0].weight.cols;
  PerKind<RowGroup> rows{};
  int64_t total = 0;
  for (const LinearPart& p : parts) {
    const WeightKind of = kind(p.weight);
    if (!rows[of].data) rows[of] = pack_rows(product(p.weight), x.f32, num_rows, k, packed_[of]);
    total += p.weight.rows;
  }
  int64_t block = INT64_MAX;
  for (const LinearPart& p : parts)
    block = std::min(block, product(p.weight).rows_per_task(p.weight.row_bytes(), balanced_rows(total), num_rows));
  int64_t tasks = 0;
  for (const LinearPart& p : parts) tasks += ceil_div(p.weight.rows, block);
  // A product that is scaled before it is added needs memory of its own.
  const bool apart = accumulate && scale != 1;
  float* results = apart ? scaled_.get(num_rows * out_stride) : out;

  pool_.parallel_runs(tasks, [&](int64_t task, int thread) {
    const LinearPart* part = parts.data();
    for (; task >= ceil_div(part->weight.rows, block); ++part) task -= ceil_div(part->weight.rows, block);
    const WeightView& w = part->weight;
    int64_t begin = task * block, count = std::min(block, w.rows - begin);
    float* to = results + part->out_column + begin;
    const void* next = begin + count < w.rows                   ? w.row(begin + count)
                       : part + 1 < parts.data() + parts.size() ? part[1].weight.data
                                                                : nullptr;
    product(w).run(w, begin, count, rows[kind(w)], num_rows, to, out_stride, accumulate && !apart, next,
                   &decoded_[size_t(thread)]);
    add_bias(kernels_, part->bias, begin, count, num_rows, to, out_stride);
    if (scale == 1) return;
    for (int64_t t = 0; t < num_rows; ++t) {
      float* row = to + t * out_stride;
      if (apart)
        kernels_.axpy(scale, row, count, out + part->out_column + begin + t * out_stride);
      else
        for (int64_t i = 0; i < count; ++i) row[i] *= scale;
    }
  });
}

// A task packs and multiplies the rows of one head.
void CpuBackend::do_head_linear(const RowsIn& x, int64_t x_stride, int64_t x_head, int64_t num_rows, HeadWeights weights,
                                float* out, int64_t out_stride, int64_t out_head) {
  const Product& p = product(weights[0]);
  const int64_t k = weights[0].cols;
  pool_.parallel_for(int64_t(weights.size()), [&](int64_t head, int thread) {
    const float* from = x.f32 + head * x_head;
    RowGroup rows{nullptr, p.row_bytes(k)};
    rows.data = query_[size_t(thread)].get(round_up(num_rows, RowGroup::kRows) * rows.row_bytes);
    for (int64_t t = 0; t < num_rows; t += RowGroup::kRows) {
      const int64_t m = std::min(RowGroup::kRows, num_rows - t);
      const float* of[RowGroup::kRows];
      for (int64_t j = 0; j < m; ++j) of[j] = from + (t + j) * x_stride;
      p.pack(of, m, 0, k, rows.from(t));
    }
    p.run(weights[size_t(head)], 0, weights[0].rows, rows, num_rows, out + head * out_head, out_stride, false, nullptr);
  });
}

void CpuBackend::do_router(const float* x, const WeightView& weight, const WeightView& bias, int64_t num_rows, float* scores,
                           float scale) {
  // Rows are not rounded to the compute dtype: a small error in a score can change a row's experts.
  const Product exact(kernels_, DType::kF32, weight.dtype);
  const RowGroup rows = pack_rows(exact, x, num_rows, weight.cols, packed_[WeightKind::kF32]);
  int64_t block = exact.rows_per_task(weight.row_bytes(), balanced_rows(weight.rows), num_rows);
  pool_.parallel_for(ceil_div(weight.rows, block), [&](int64_t task, int) {
    int64_t begin = task * block, count = std::min(block, weight.rows - begin);
    exact.run(weight, begin, count, rows, num_rows, scores + begin, weight.rows, false, nullptr);
    for (int64_t t = 0; scale != 1 && t < num_rows; ++t)
      for (int64_t e = begin; e < begin + count; ++e) scores[t * weight.rows + e] *= scale;
    add_bias(kernels_, bias, begin, count, num_rows, scores + begin, weight.rows);
  });
}

}  // namespace lynx_rt
