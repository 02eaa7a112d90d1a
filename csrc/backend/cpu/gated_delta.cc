// gated_delta_rule(). Work split: first a task is a head of one sequence, for which it convolves and norms the columns and computes the
// gates of all rows; then a value head of one sequence, or kDeltaColumns columns of it where there are several rows; last some
// rows of the output. Bytes: the states, once read and once written. Limit: memory bandwidth in decode, the first-level cache in prefill.
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/softplus.h"

namespace lynx_rt {

namespace {

constexpr float kUnitEps = 1e-6f;  // of the norm of q and k
constexpr int64_t kNormRows = 16;  // rows of a task

}  // namespace

void CpuBackend::do_gated_delta(const GatedDeltaArgs& args, const BatchView& batch, const StateView& states, const RowsOut& out) {
  const DeltaShape& s = args.shape;
  const int64_t kh = s.key_heads, vh = s.value_heads, dk = s.key_dim, dv = s.value_dim;
  const float *rates = static_cast<const float*>(args.rate.data), *dt_bias = static_cast<const float*>(args.dt_bias.data);
  const auto state_of = [&](int64_t seq) {
    return reinterpret_cast<float*>(states.data + batch.state_slots[seq] * states.stride);
  };
  // Convolves `n` columns from `first` on, which are those of q, k or v (`part`) from `column` on.
  const auto convolve = [&](int64_t seq, int64_t first, int64_t part, int64_t column, int64_t n) {
    const WeightView& conv = args.conv[part];
    const cpu::ConvFilter filter{static_cast<const float*>(conv.data) + column, conv.cols, s.conv_width, nullptr, true};
    float *x = args.x + batch.query_start[seq] * args.x_stride + first,
          *past = state_of(seq) + s.matrix_size() + part * kh * dk + column;
    kernels_.delta.short_conv(x, args.x_stride, batch.query_start[seq + 1] - batch.query_start[seq], n, filter, past,
                              s.channels());
  };
  const int64_t heads = 2 * kh + vh;
  pool_.parallel_for(batch.num_seqs * heads, [&](int64_t task, int) {
    const int64_t seq = task / heads, head = task % heads, begin = batch.query_start[seq], end = batch.query_start[seq + 1];
    if (begin == end) return;
    if (head < 2 * kh) {
      const bool is_q = head < kh;
      const HeadColumns& c = is_q ? args.q : args.k;
      const int64_t first = c.first + head % kh * c.stride;
      convolve(seq, first, is_q ? 0 : 1, head % kh * dk, dk);
      for (int64_t t = begin; t < end; ++t)
        kernels_.delta.unit_norm(args.x + t * args.x_stride + first, dk, kUnitEps, is_q ? 1.0f / std::sqrt(float(dk)) : 1.0f);
      return;
    }
    const int64_t h = head - 2 * kh;
    convolve(seq, s.column(args.v, h, dv), 2, h * dv, dv);
    for (int64_t t = begin; t < end; ++t) {  // beta replaces b, and the decay a
      float *row = args.x + t * args.x_stride, *b = row + s.column(args.b, h, 1), *a = row + s.column(args.a, h, s.decays());
      *b = 1.0f / (1.0f + std::exp(-*b));
      for (int64_t d = 0; d < s.decays(); ++d) a[d] = std::exp(rates[h] * softplus(a[d] + dt_bias[h * s.decays() + d]));
    }
  });

  const auto rows_of = [&](int64_t seq, int64_t h) {
    const int64_t row = batch.query_start[seq];
    const float* x = args.x + row * args.x_stride;
    return cpu::DeltaRows{x + args.q.first + s.key_head_of(h) * args.q.stride,
                          x + args.k.first + s.key_head_of(h) * args.k.stride,
                          x + s.column(args.v, h, dv),
                          x + s.column(args.b, h, 1),
                          x + s.column(args.a, h, s.decays()),
                          args.x_stride,
                          out.f32 + (row * vh + h) * dv,
                          vh * dv};
  };
  const int64_t blocks = ceil_div(dv, cpu::kDeltaColumns);
  const auto rule = s.channel_decay ? kernels_.delta.delta_rule_by_channel : kernels_.delta.delta_rule;
  pool_.parallel_for(batch.num_seqs * vh * blocks, [&](int64_t task, int thread) {
    const int64_t seq = task / (vh * blocks), h = task / blocks % vh, first = task % blocks * cpu::kDeltaColumns;
    const int64_t num_rows = batch.query_start[seq + 1] - batch.query_start[seq];
    float *state = state_of(seq) + h * dk * dv,
          *tile = tile_[size_t(thread)].get(std::max(dk * cpu::kDeltaColumns, cpu::delta_row_scratch(dv)));
    if (num_rows == 1 && !s.channel_decay) {
      if (first == 0) kernels_.delta.delta_row(rows_of(seq, h), dk, dv, state, tile);
    } else if (num_rows > 0) {
      rule(rows_of(seq, h), num_rows, dk, dv, first, std::min(cpu::kDeltaColumns, dv - first), state, tile);
    }
  });

  pool_.parallel_for(ceil_div(batch.num_rows, kNormRows), [&](int64_t task, int) {
    for (int64_t t = task * kNormRows; t < std::min(batch.num_rows, (task + 1) * kNormRows); ++t)
      for (int64_t h = 0; h < vh; ++h) {
        float* o = out.f32 + (t * vh + h) * dv;
        kernels_.rmsnorm(o, args.norm.data, args.norm.dtype, dv, args.eps, o);
        const float* z = args.x + t * args.x_stride + s.column(args.z, h, dv);
        args.sigmoid_gate ? kernels_.sigmoid_mul(z, dv, o) : kernels_.silu_mul(z, o, dv, o);
      }
  });
}

}  // namespace lynx_rt
