// linear(): out[t, n] (+)= x[t] . weight[n]. Work split: a task is a block of weight rows of one part, small enough for the
// second-level cache, against all rows of x; threads stream disjoint weight rows, each read from memory once per call.
// Bytes: the weights. Limit: memory bandwidth for few rows, the dot-product rate for many.
#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

void CpuBackend::do_linear(const float* x, int64_t num_rows, std::span<const LinearPart> parts, bool accumulate, float* out,
                           int64_t out_stride) {
  int64_t k = parts[0].weight.cols;
  RowGroup rows[5];
  int64_t total = 0;
  for (const LinearPart& p : parts) {
    const int f = form(p.weight);
    if (!rows[f].data) rows[f] = pack_rows(product(p.weight), x, num_rows, k, packed_[f]);
    total += p.weight.rows;
  }
  int64_t block = INT64_MAX;
  for (const LinearPart& p : parts)
    block = std::min(block, product(p.weight).rows_per_task(p.weight.row_bytes(), balanced_rows(total)));
  int64_t tasks = 0;
  for (const LinearPart& p : parts) tasks += ceil_div(p.weight.rows, block);

  pool_.parallel_for(tasks, [&](int64_t task, int) {
    const LinearPart* part = parts.data();
    for (; task >= ceil_div(part->weight.rows, block); ++part) task -= ceil_div(part->weight.rows, block);
    const WeightView& w = part->weight;
    int64_t begin = task * block, count = std::min(block, w.rows - begin);
    float* to = out + part->out_column + begin;
    product(w).run(w, begin, count, rows[form(w)], num_rows, to, out_stride, accumulate);
    if (part->bias.empty()) return;
    for (int64_t i = 0; i < count; ++i) {
      float b;
      kernels_.to_f32(static_cast<const char*>(part->bias.data) + (begin + i) * dtype_size(part->bias.dtype), part->bias.dtype, 1,
                      &b);
      for (int64_t t = 0; t < num_rows; ++t) to[t * out_stride + i] += b;
    }
  });
}

void CpuBackend::do_router(const float* x, const WeightView& weight, int64_t num_rows, float* scores) {
  // float32 rows whatever the compute dtype: the choice of experts is the least forgiving product of the model.
  const Product exact(kernels_, DType::kF32, weight.dtype);
  const RowGroup rows = pack_rows(exact, x, num_rows, weight.cols, packed_[0]);
  int64_t block = exact.rows_per_task(weight.row_bytes(), balanced_rows(weight.rows));
  pool_.parallel_for(ceil_div(weight.rows, block), [&](int64_t task, int) {
    int64_t begin = task * block, count = std::min(block, weight.rows - begin);
    exact.run(weight, begin, count, rows, num_rows, scores + begin, weight.rows, false);
  });
}

}  // namespace lynx_rt
