// linear(): out[t, n] (+)= x[t] . weight[n]. Work split: a task is a block of weight rows of one part, small enough for the
// second-level cache, against all rows of x; threads stream disjoint weight rows, each read from memory once per call.
// Bytes: the weights. Limit: memory bandwidth for few rows, the dot-product rate for many.
#include "backend/cpu/cpu_backend.h"

namespace lynx_rt {

namespace {

// Weight rows per task: cached_rows(), but enough tasks that the last ones do not leave threads idle.
int64_t rows_per_task(int64_t rows, int64_t row_bytes, int threads) {
  int64_t by_balance = std::max<int64_t>(4, round_up(ceil_div(rows, 8 * threads), 4));
  return std::min(cached_rows(row_bytes), by_balance);
}

}  // namespace

void CpuBackend::do_linear(const float* x, int64_t num_rows, std::span<const LinearPart> parts, bool accumulate, float* out,
                           int64_t out_stride) {
  int64_t k = parts[0].weight.cols;
  const void* const* rows[3] = {};
  int64_t total = 0, row_bytes = 0;
  for (const LinearPart& p : parts) {
    int d = int(p.weight.dtype);
    if (!rows[d]) rows[d] = pack_rows(x, num_rows, k, p.weight.dtype, packed_[d], packed_rows_[d]);
    total += p.weight.rows;
    row_bytes = std::max(row_bytes, p.weight.row_bytes());
  }
  int64_t block = rows_per_task(total, row_bytes, pool_.num_threads());
  int64_t tasks = 0;
  for (const LinearPart& p : parts) tasks += ceil_div(p.weight.rows, block);

  pool_.parallel_for(tasks, [&](int64_t task, int) {
    const LinearPart* part = parts.data();
    for (; task >= ceil_div(part->weight.rows, block); ++part) task -= ceil_div(part->weight.rows, block);
    const WeightView& w = part->weight;
    int64_t begin = task * block, count = std::min(block, w.rows - begin);
    float* to = out + part->out_column + begin;
    gemm(w.dtype)(w.row(begin), w.row_bytes(), count, rows[int(w.dtype)], num_rows, k, to, out_stride, accumulate);
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
  const void** rows = packed_rows_[0].get(num_rows);
  for (int64_t t = 0; t < num_rows; ++t) rows[t] = x + t * weight.cols;
  int64_t block = rows_per_task(weight.rows, weight.row_bytes(), pool_.num_threads());
  pool_.parallel_for(ceil_div(weight.rows, block), [&](int64_t task, int) {
    int64_t begin = task * block, count = std::min(block, weight.rows - begin);
    kernels_.gemm_f32[int(weight.dtype)](weight.row(begin), weight.row_bytes(), count, rows, num_rows, weight.cols,
                                         scores + begin, weight.rows, false);
  });
}

}  // namespace lynx_rt
