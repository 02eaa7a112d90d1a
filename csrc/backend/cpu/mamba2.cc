// mamba2() and short_conv(). Work split: first a task convolves some columns of one sequence, or computes the gates of a head's rows;
// then it runs kDeltaColumns columns of a head of one sequence; last some rows of the output.
// Bytes: the states, once read and once written. Limit: memory bandwidth in decode, the first-level cache in prefill.
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/softplus.h"

namespace lynx_rt {

namespace {

constexpr int64_t kTaskColumns = 256;  // columns that a task convolves
constexpr int64_t kNormRows = 16;      // rows of a task

const float* floats(const WeightView& w) { return static_cast<const float*>(w.data); }  // null of an empty one

// Returns the filter of columns from `first` on.
cpu::ConvFilter filter_of(const WeightView& conv, const WeightView& bias, int64_t first, bool silu) {
  return {floats(conv) + first, conv.cols, conv.rows, bias.empty() ? nullptr : floats(bias) + first, silu};
}

// Returns where a weight's value of column `first` is.
const void* at(const WeightView& w, int64_t first) { return static_cast<const char*>(w.data) + first * dtype_size(w.dtype); }

}  // namespace

void CpuBackend::do_mamba2(const Mamba2Args& args, const BatchView& batch, const StateView& states, const RowsOut& out) {
  const Mamba2Shape& s = args.shape;
  const int64_t heads = s.heads, p = s.head_dim, n = s.state_dim, values = s.values(), channels = s.channels();
  const int64_t dt = values + channels, decay = dt + heads;  // columns of a row
  const auto state_of = [&](int64_t seq) {
    return reinterpret_cast<float*>(states.data + batch.state_slots[seq] * states.stride);
  };
  const int64_t conv_tasks = ceil_div(channels, kTaskColumns), tasks = conv_tasks + heads;
  pool_.parallel_for(batch.num_seqs * tasks, [&](int64_t task, int) {
    const int64_t seq = task / tasks, part = task % tasks, begin = batch.query_start[seq], end = batch.query_start[seq + 1];
    if (begin == end) return;
    if (part < conv_tasks) {
      const int64_t first = part * kTaskColumns;
      kernels_.delta.short_conv(args.x + begin * args.x_stride + values + first, args.x_stride, end - begin,
                                std::min(kTaskColumns, channels - first), filter_of(args.conv, args.conv_bias, first, true),
                                state_of(seq) + s.matrix_size() + first, channels);
      return;
    }
    const int64_t h = part - conv_tasks;
    for (int64_t t = begin; t < end; ++t) {
      float* row = args.x + t * args.x_stride;
      row[dt + h] = std::min(std::max(softplus(row[dt + h] + floats(args.dt_bias)[h]), args.min_dt), args.max_dt);
      row[decay + h] = std::exp(floats(args.rate)[h] * row[dt + h]);
    }
  });

  const int64_t blocks = ceil_div(p, cpu::kDeltaColumns);
  pool_.parallel_for(batch.num_seqs * heads * blocks, [&](int64_t task, int thread) {
    const int64_t seq = task / (heads * blocks), h = task / blocks % heads, first = task % blocks * cpu::kDeltaColumns;
    const int64_t row = batch.query_start[seq], num_rows = batch.query_start[seq + 1] - row, group = h / (heads / s.groups);
    if (num_rows == 0) return;
    const float *x = args.x + row * args.x_stride, *inputs = x + values, *b = inputs + values + group * n;
    const cpu::DeltaRows rows{
        b + s.groups * n, b, inputs + h * p, x + dt + h, x + decay + h, args.x_stride, out.f32 + row * values + h * p, values};
    kernels_.delta.selective_scan(rows, num_rows, n, p, first, std::min(cpu::kDeltaColumns, p - first), state_of(seq) + h * n * p,
                                  tile_[size_t(thread)].get(n * cpu::kDeltaColumns));
  });

  const int64_t of_group = values / s.groups;
  pool_.parallel_for(ceil_div(batch.num_rows, kNormRows), [&](int64_t task, int) {
    for (int64_t t = task * kNormRows; t < std::min(batch.num_rows, (task + 1) * kNormRows); ++t) {
      const float *z = args.x + t * args.x_stride, *x = z + values;
      float* y = out.f32 + t * values;
      for (int64_t h = 0; h < heads; ++h) kernels_.axpy(floats(args.skip)[h], x + h * p, p, y + h * p);
      kernels_.silu_mul(z, y, values, y);
      for (int64_t first = 0; first < values; first += of_group)
        kernels_.rmsnorm(y + first, at(args.norm, first), args.norm.dtype, of_group, args.eps, y + first);
    }
  });
}

void CpuBackend::do_short_conv(const ShortConvArgs& args, const BatchView& batch, const StateView& states, const RowsOut& out) {
  const int64_t channels = args.channels, tasks = ceil_div(channels, kTaskColumns);
  pool_.parallel_for(batch.num_seqs * tasks, [&](int64_t task, int) {
    const int64_t seq = task / tasks, first = task % tasks * kTaskColumns, n = std::min(kTaskColumns, channels - first);
    const int64_t begin = batch.query_start[seq], end = batch.query_start[seq + 1];
    if (begin == end) return;
    float* past = reinterpret_cast<float*>(states.data + batch.state_slots[seq] * states.stride) + first;
    float* x = args.x + begin * args.x_stride + 2 * channels + first;
    const auto multiply = [&](int64_t t, int64_t by, float* to) {  // the row's x, times its columns from `by` on
      const float *row = args.x + t * args.x_stride + first, *in = row + 2 * channels;
      for (int64_t i = 0; i < n; ++i) to[i] = row[by + i] * in[i];
    };
    for (int64_t t = begin; t < end; ++t) multiply(t, 0, x + (t - begin) * args.x_stride);
    kernels_.delta.short_conv(x, args.x_stride, end - begin, n, filter_of(args.conv, args.bias, first, false), past, channels);
    for (int64_t t = begin; t < end; ++t) multiply(t, channels, out.f32 + t * channels + first);
  });
}

}  // namespace lynx_rt
