// Three launches. conv_kernel: a block is a head of one sequence, a thread convolves a channel through all rows; then the block norms q or
// k, or computes the gates. delta_kernel: a warp holds eight columns of a state in registers, and runs them through all rows. norm_kernel:
// a warp norms and gates a row of one value head.
// Bytes: the states, once read and once written. Limit: memory bandwidth in decode; the dependence of each row on the last in prefill.
// Not run on a GPU yet: tests/simt runs it on the CPU.
#include "backend/cuda/attention/gated_delta.h"

#include "backend/cuda/attention/state_conv.cuh"
#include "backend/cuda/rows/round.h"
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"

namespace lynx_rt::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kSlices = 4;                         // lanes that share a column of a state
constexpr int kWarpColumns = kWarpSize / kSlices;  // columns of a warp
constexpr int kBlockColumns = kWarps * kWarpColumns;
constexpr float kUnitEps = 1e-6f;  // of the norm of q and k

struct DeltaParams {
  GatedDeltaCall call;
  const float *conv[3], *rate, *dt_bias, *norm, *skip;
  int key_heads, value_heads, per_key, key_dim, value_dim, width, channels, decays;
  bool tiled;
  int64_t matrix_size;
};

__device__ float* state_of(const DeltaParams& p, int slot) {
  return reinterpret_cast<float*>(p.call.states.data + slot * p.call.states.stride);
}

// Returns the first column of a value head.
__device__ int64_t column_of(const DeltaParams& p, const HeadColumns& c, int value_head, int width) {
  return p.tiled ? c.first + value_head * width : c.first + value_head / p.per_key * c.stride + value_head % p.per_key * width;
}

// Block (head, sequence): heads are those of q, of k, and of v.
template <int kWidth>
__global__ void __launch_bounds__(kThreads, 1) conv_kernel(const __grid_constant__ DeltaParams p) {
  grid_wait();
  grid_launch_dependents();
  const GatedDeltaArgs& a = p.call.args;
  const int head = int(blockIdx.x), seq = int(blockIdx.y), slot = p.call.slots[seq];
  const int64_t begin = p.call.query_start[seq], rows = p.call.query_start[seq + 1] - begin;
  if (slot < 0 || rows == 0) return;
  const bool is_v = head >= 2 * p.key_heads, is_q = head < p.key_heads;
  const int value_head = head - 2 * p.key_heads, n = is_v ? p.value_dim : p.key_dim;
  const HeadColumns& columns = is_q ? a.q : a.k;
  const int64_t first = is_v ? column_of(p, a.v, value_head, p.value_dim) : columns.first + head % p.key_heads * columns.stride;
  const int channel = is_v ? 2 * p.key_heads * p.key_dim + value_head * p.value_dim : head * p.key_dim;
  const int part = is_v ? 2 : is_q ? 0 : 1, of_part = channel - part * p.key_heads * p.key_dim;
  const ConvFilter filter = {p.conv[part], nullptr, is_v ? p.value_heads * p.value_dim : p.key_heads * p.key_dim, p.width};
  float* x = a.x + begin * a.x_stride + first;
  LYNX_ROLLED
  for (int i = int(threadIdx.x); i < n; i += kThreads)
    convolve<kWidth>(
        filter, of_part + i, rows, state_of(p, slot) + p.matrix_size + channel + i, p.channels,
        [&](int64_t t) { return x[t * a.x_stride + i]; },
        [&](int64_t t, float sum) { x[t * a.x_stride + i] = sum / (1.0f + accurate_exp(-sum)); });
  sync_block();  // the rows of x
  if (is_v) {
    const float rate = p.rate[value_head];
    const int count = int(rows) * p.decays;
    LYNX_ROLLED
    for (int i = int(threadIdx.x); i < count; i += kThreads) {
      const int t = i / p.decays, d = i % p.decays;
      float* row = a.x + (begin + t) * a.x_stride;
      float *b = row + column_of(p, a.b, value_head, 1), *decay = row + column_of(p, a.a, value_head, p.decays) + d;
      const float v = *decay + p.dt_bias[value_head * p.decays + d], soft = v > 20.0f ? v : log1pf(accurate_exp(v));
      if (d == 0) *b = 1.0f / (1.0f + accurate_exp(-*b));
      *decay = accurate_exp(rate * soft);
    }
    return;
  }
  const float scale = is_q ? 1.0f / sqrtf(float(n)) : 1.0f;
  for (int64_t t = warp_id(); t < rows; t += kWarps) {
    float* row = x + t * a.x_stride;
    float sum = 0;
    for (int i = lane_id(); i < n; i += kWarpSize) sum = fmaf(row[i], row[i], sum);
    for (int bit = kWarpSize / 2; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
    const float by = scale / sqrtf(sum + kUnitEps);
    for (int i = lane_id(); i < n; i += kWarpSize) row[i] = row[i] * by;
  }
}

__device__ float add_slices(float v) {
  v += shuffle_xor(kFullWarp, v, kWarpColumns);
  return v + shuffle_xor(kFullWarp, v, 2 * kWarpColumns);
}

// Block (value head and columns, sequence). kPart: the most elements of a column that a lane holds.
template <int kPart, Recurrence kRule>
__global__ void __launch_bounds__(kThreads) delta_kernel(const __grid_constant__ DeltaParams p) {
  grid_wait();
  grid_launch_dependents();
  const GatedDeltaArgs& a = p.call.args;
  const int blocks = (p.value_dim + kBlockColumns - 1) / kBlockColumns;
  const int head = int(blockIdx.x) / blocks, seq = int(blockIdx.y), slot = p.call.slots[seq];
  const int column = int(blockIdx.x) % blocks * kBlockColumns + warp_id() * kWarpColumns + lane_id() % kWarpColumns;
  const int slice = lane_id() / kWarpColumns;
  const bool is_column = column < p.value_dim, writes = is_column && slice == 0;
  const int64_t begin = p.call.query_start[seq], rows = p.call.query_start[seq + 1] - begin;
  const int64_t out_stride = int64_t(p.value_heads) * p.value_dim;
  float* out = p.call.out + begin * out_stride + int64_t(head) * p.value_dim + column;
  if (slot < 0) {
    for (int64_t t = 0; t < rows; ++t)
      if (writes) out[t * out_stride] = 0;
    return;
  }
  if (rows == 0) return;
  float* state = state_of(p, slot) + int64_t(head) * p.key_dim * p.value_dim + column;
  float s[kPart];
  LYNX_UNROLL
  for (int i = 0; i < kPart; ++i) {
    const int d = slice + kSlices * i;
    s[i] = is_column && d < p.key_dim ? state[int64_t(d) * p.value_dim] : 0;
  }
  const float* x = a.x + begin * a.x_stride;
  const int key_head = p.tiled ? head % p.key_heads : head / p.per_key;
  const float *q = x + a.q.first + key_head * a.q.stride, *k = x + a.k.first + key_head * a.k.stride;
  const float *v = x + column_of(p, a.v, head, p.value_dim) + column, *beta = x + column_of(p, a.b, head, 1),
              *decay = x + column_of(p, a.a, head, p.decays);
  const float skip = kRule == Recurrence::kScan ? p.skip[head] : 0;
  LYNX_ROLLED
  for (int64_t t = 0; t < rows; ++t) {
    const int64_t at = t * a.x_stride;
    // Keys are read twice, because registers for them would be missing beside those of the state.
    const auto key = [&](int d) { return d < p.key_dim ? k[at + d] : 0; };
    float sum = 0;
    LYNX_UNROLL
    for (int i = 0; i < kPart; ++i) {
      const int d = slice + kSlices * i;
      if (kRule == Recurrence::kDeltaByChannel) s[i] = d < p.key_dim ? decay[at + d] * s[i] : 0;
      if (kRule != Recurrence::kScan) sum = fmaf(key(d), s[i], sum);
    }
    const float by = kRule == Recurrence::kDeltaByChannel ? 1 : decay[at], value = is_column ? v[at] : 0;
    const float u = beta[at] * (kRule == Recurrence::kScan ? value : value - by * add_slices(sum));
    sum = 0;
    LYNX_UNROLL
    for (int i = 0; i < kPart; ++i) {
      const int d = slice + kSlices * i;
      if (kRule == Recurrence::kScan && d >= p.key_dim) continue;  // the scan spills registers otherwise, the other rules here
      s[i] = fmaf(key(d), u, by * s[i]);
      sum = fmaf(d < p.key_dim ? q[at + d] : 0, s[i], sum);
    }
    sum = add_slices(sum);
    if (kRule == Recurrence::kScan) sum = fmaf(skip, value, sum);
    if (writes) out[t * out_stride] = sum;
  }
  LYNX_UNROLL
  for (int i = 0; i < kPart; ++i) {
    const int d = slice + kSlices * i;
    if (is_column && d < p.key_dim) state[int64_t(d) * p.value_dim] = s[i];
  }
}

__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ DeltaParams p) {
  grid_wait();
  grid_launch_dependents();
  const GatedDeltaArgs& a = p.call.args;
  const int64_t job = int64_t(blockIdx.x) * kWarps + warp_id();
  if (job >= int64_t(p.call.num_rows) * p.value_heads) return;
  const int64_t t = job / p.value_heads;
  const int head = int(job % p.value_heads);
  float* out = p.call.out + job * p.value_dim;
  const float* z = a.x + t * a.x_stride + column_of(p, a.z, head, p.value_dim);
  float sum = 0;
  for (int i = lane_id(); i < p.value_dim; i += kWarpSize) sum = fmaf(out[i], out[i], sum);
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2) sum += shuffle_xor(kFullWarp, sum, bit);
  const float by = 1.0f / sqrtf(sum / float(p.value_dim) + a.eps);
  for (int i = lane_id(); i < p.value_dim; i += kWarpSize)
    out[i] = out[i] * by * p.norm[i] * ((a.sigmoid_gate ? 1.0f : z[i]) / (1.0f + accurate_exp(-z[i])));
}

DeltaParams params_of(const GatedDeltaCall& call) {
  const DeltaShape& s = call.args.shape;
  if (s.key_dim > kMaxDeltaKeyDim)
    fail(ErrorCode::kUnsupported, "states", "states: device cuda: expected at most ", kMaxDeltaKeyDim,
         " rows of a head's state, got ", s.key_dim);
  if (call.num_seqs > 65535)
    fail(ErrorCode::kUnsupported, "states", "states: expected at most 65535 sequences, got ", call.num_seqs);
  DeltaParams p = {};
  p.call = call;
  p.key_heads = int(s.key_heads);
  p.value_heads = int(s.value_heads);
  p.per_key = int(s.values_per_key());
  p.key_dim = int(s.key_dim);
  p.value_dim = int(s.value_dim);
  p.width = int(s.conv_width);
  p.channels = int(s.channels());
  p.decays = int(s.decays());
  p.tiled = s.tiled;
  p.matrix_size = s.matrix_size();
  return p;
}

template <Recurrence kRule>
void run(const DeltaParams& p, Stream stream) {
  launch(p.key_dim <= 32    ? delta_kernel<8, kRule>
         : p.key_dim <= 128 ? delta_kernel<32, kRule>
                            : delta_kernel<64, kRule>,
         Dim3(unsigned(p.value_heads * ceil_div(p.value_dim, kBlockColumns)), unsigned(p.call.num_seqs)), kThreads, 0, stream, p);
}

void run(const DeltaParams& p, Recurrence rule, Stream stream) {
  switch (rule) {
    case Recurrence::kDelta: return run<Recurrence::kDelta>(p, stream);
    case Recurrence::kDeltaByChannel: return run<Recurrence::kDeltaByChannel>(p, stream);
    case Recurrence::kScan: return run<Recurrence::kScan>(p, stream);
  }
}

}  // namespace

void run_states(const GatedDeltaCall& call, Recurrence rule, const float* skip, Stream stream) {
  DeltaParams p = params_of(call);
  p.skip = skip;
  run(p, rule, stream);
}

void gated_delta_rule(const GatedDeltaCall& call, Stream stream) {
  const DeltaShape& s = call.args.shape;
  DeltaParams p = params_of(call);
  if (call.num_rows <= 0 || call.num_seqs <= 0) return;
  for (int i = 0; i < 3; ++i) p.conv[i] = static_cast<const float*>(call.args.conv[i].data);
  p.rate = static_cast<const float*>(call.args.rate.data);
  p.dt_bias = static_cast<const float*>(call.args.dt_bias.data);
  p.norm = static_cast<const float*>(call.args.norm.data);
  const unsigned sequences = unsigned(call.num_seqs);
  launch(s.conv_width <= 4 ? conv_kernel<4> : conv_kernel<DeltaShape::kMaxConvWidth>,
         Dim3(unsigned(2 * s.key_heads + s.value_heads), sequences), kThreads, 0, stream, p);
  run(p, s.channel_decay ? Recurrence::kDeltaByChannel : Recurrence::kDelta, stream);
  launch(norm_kernel, unsigned(ceil_div(call.num_rows * s.value_heads, kWarps)), kThreads, 0, stream, p);
  if (call.rounded) round_rows(call.out, s.values(), call.num_rows, int(s.values()), call.rounded, stream);
}

}  // namespace lynx_rt::cuda
