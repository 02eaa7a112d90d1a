// mamba2() in four launches: conv_kernel, in which a thread convolves a channel of one sequence through all rows; dt_kernel, a thread for a
// head of a row; gated_delta.cu's run_states(); norm_kernel, in which a warp gates and norms a group of a row. short_conv() is one.
// Bytes: the states, once read and once written. Limit: memory bandwidth in decode; the dependence of each row on the last in prefill.
// Not run on a GPU yet: tests/simt runs it on the CPU.
#include "backend/cuda/attention/mamba2.h"

#include "backend/cuda/attention/gated_delta.h"
#include "backend/cuda/attention/state_conv.cuh"
#include "backend/cuda/rows/round.h"
#include "backend/cuda/runtime/launch.h"

namespace lynx_rt::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

const float* floats(const WeightView& w) { return static_cast<const float*>(w.data); }  // null of an empty one

struct ConvParams {
  StateRows rows;
  ConvFilter filter;
  float* x;  // the first of the columns that are convolved
  int64_t x_stride, state_offset;
  int channels;
};

struct Part {
  int64_t begin, rows;
  float* state;  // null: the sequence only pads the batch
};
__device__ Part part_of(const StateRows& r, int seq) {
  const int64_t begin = r.query_start[seq];
  const int slot = r.slots[seq];
  return {begin, r.query_start[seq + 1] - begin,
          slot < 0 ? nullptr : reinterpret_cast<float*>(r.states.data + slot * r.states.stride)};
}

// Block (channels, sequence). kGated: x holds b, c and x of all channels, and out = c * convolution of b * x; else x = silu(convolution).
template <int kWidth, bool kGated>
__global__ void __launch_bounds__(kThreads) conv_kernel(const __grid_constant__ ConvParams p) {
  grid_wait();
  grid_launch_dependents();
  const int channel = int(blockIdx.x) * kThreads + int(threadIdx.x);
  const Part part = part_of(p.rows, int(blockIdx.y));
  if (channel >= p.channels || part.rows == 0) return;
  float *x = p.x + part.begin * p.x_stride + channel, *out = p.rows.out + part.begin * p.channels + channel;
  if (!part.state) {
    for (int64_t t = 0; kGated && t < part.rows; ++t) out[t * p.channels] = 0;
    return;
  }
  float* past = part.state + p.state_offset + channel;
  if constexpr (kGated) {
    convolve<kWidth>(
        p.filter, channel, part.rows, past, p.channels,
        [&](int64_t t) { return x[t * p.x_stride] * x[t * p.x_stride + 2 * p.channels]; },
        [&](int64_t t, float sum) { out[t * p.channels] = x[t * p.x_stride + p.channels] * sum; });
  } else {
    convolve<kWidth>(
        p.filter, channel, part.rows, past, p.channels, [&](int64_t t) { return x[t * p.x_stride]; },
        [&](int64_t t, float sum) { x[t * p.x_stride] = sum / (1.0f + accurate_exp(-sum)); });
  }
}

template <bool kGated>
void convolve_rows(const ConvParams& p, Stream stream) {
  launch(p.filter.width <= 4 ? conv_kernel<4, kGated> : conv_kernel<DeltaShape::kMaxConvWidth, kGated>,
         Dim3(unsigned(ceil_div(p.channels, kThreads)), unsigned(p.rows.num_seqs)), kThreads, 0, stream, p);
}

struct Mamba2Params {
  Mamba2Args args;
  const float *rate, *dt_bias, *norm;
  float* out;
  int num_rows, heads, groups, values, dt_column;
};

__global__ void __launch_bounds__(kThreads) dt_kernel(const __grid_constant__ Mamba2Params p) {
  grid_wait();
  grid_launch_dependents();
  const int64_t job = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (job >= int64_t(p.num_rows) * p.heads) return;
  const int head = int(job % p.heads);
  float* dt = p.args.x + job / p.heads * p.args.x_stride + p.dt_column + head;
  const float v = *dt + p.dt_bias[head], soft = v > 20.0f ? v : log1pf(accurate_exp(v));
  const float low = soft < p.args.min_dt ? p.args.min_dt : soft, step = low > p.args.max_dt ? p.args.max_dt : low;
  *dt = step;
  dt[p.heads] = accurate_exp(p.rate[head] * step);
}

__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ Mamba2Params p) {
  grid_wait();
  grid_launch_dependents();
  const int64_t job = int64_t(blockIdx.x) * kWarps + warp_id();
  if (job >= int64_t(p.num_rows) * p.groups) return;
  const int n = p.values / p.groups, first = int(job % p.groups) * n;
  const float* z = p.args.x + job / p.groups * p.args.x_stride + first;
  float* out = p.out + job / p.groups * p.values + first;
  float sum = 0;
  for (int i = lane_id(); i < n; i += kWarpSize) {
    out[i] = z[i] / (1.0f + accurate_exp(-z[i])) * out[i];
    sum = fmaf(out[i], out[i], sum);
  }
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  const float by = 1.0f / sqrtf(sum / float(n) + p.args.eps);
  for (int i = lane_id(); i < n; i += kWarpSize) out[i] = out[i] * by * p.norm[first + i];
}

}  // namespace

void mamba2(const Mamba2Args& args, const StateRows& rows, Stream stream) {
  if (rows.num_rows <= 0 || rows.num_seqs <= 0) return;
  const Mamba2Shape& s = args.shape;
  const int64_t values = s.values(), channels = s.channels(), per_group = s.heads / s.groups, keys = s.groups * s.state_dim;
  const int64_t b = 2 * values, dt = values + channels;  // columns of a row: z, x, B, C, dt
  GatedDeltaCall call = {};
  call.args.x = args.x;
  call.args.x_stride = args.x_stride;
  call.args.shape = {s.groups, s.heads, s.state_dim, s.head_dim, s.conv_width};
  call.args.q = {b + keys, s.state_dim};
  call.args.k = {b, s.state_dim};
  call.args.v = {values, per_group * s.head_dim};
  call.args.b = {dt, per_group};
  call.args.a = {dt + s.heads, per_group};
  call.states = rows.states;
  call.query_start = rows.query_start;
  call.slots = rows.slots;
  call.num_rows = rows.num_rows;
  call.num_seqs = rows.num_seqs;
  call.out = rows.out;
  const Mamba2Params p = {args,          floats(args.rate), floats(args.dt_bias), floats(args.norm), rows.out,
                          rows.num_rows, int(s.heads),      int(s.groups),        int(values),       int(dt)};
  convolve_rows<false>({rows,
                        {floats(args.conv), floats(args.conv_bias), channels, int(s.conv_width)},
                        args.x + values,
                        args.x_stride,
                        s.matrix_size(),
                        int(channels)},
                       stream);
  launch(dt_kernel, unsigned(ceil_div(rows.num_rows * s.heads, kThreads)), kThreads, 0, stream, p);
  run_states(call, Recurrence::kScan, floats(args.skip), stream);
  launch(norm_kernel, unsigned(ceil_div(rows.num_rows * s.groups, kWarps)), kThreads, 0, stream, p);
  if (rows.rounded) round_rows(rows.out, values, rows.num_rows, int(values), rows.rounded, stream);
}

void short_conv(const ShortConvArgs& args, const StateRows& rows, Stream stream) {
  if (rows.num_rows <= 0 || rows.num_seqs <= 0) return;
  if (rows.num_seqs > 65535)
    fail(ErrorCode::kUnsupported, "states", "states: expected at most 65535 sequences, got ", rows.num_seqs);
  convolve_rows<true>({rows,
                       {floats(args.conv), floats(args.bias), args.channels, int(args.conv.rows)},
                       args.x,
                       args.x_stride,
                       0,
                       int(args.channels)},
                      stream);
  if (rows.rounded) round_rows(rows.out, args.channels, rows.num_rows, int(args.channels), rows.rounded, stream);
}

}  // namespace lynx_rt::cuda
