// The argument checks of the ops that keep a state of each sequence.
#include "backend/op_checks.h"

namespace lynx_rt {

void Backend::gated_delta_rule(const GatedDeltaArgs& args, const BatchView& batch, const StateView& states, Activations& out) {
  const DeltaShape& s = args.shape;
  require(s.key_heads > 0 && s.value_heads > 0 && s.value_heads % s.key_heads == 0 && s.key_dim > 0 && s.value_dim > 0,
          "gated_delta_rule", "expected heads, whose values are a multiple of the keys");
  require(s.conv_width >= 2 && s.conv_width <= DeltaShape::kMaxConvWidth, "gated_delta_rule",
          "expected a convolution over 2 to 16 inputs");
  const auto require_columns = [&](const HeadColumns& c, int64_t count) {
    require(c.first >= 0 && c.stride >= 0 && c.first + (s.key_heads - 1) * c.stride + count <= args.x_stride, "gated_delta_rule",
            "columns reach past x_stride");
  };
  for (const HeadColumns* c : {&args.q, &args.k}) require_columns(*c, s.key_dim);
  require(!s.channel_decay || !s.tiled, "gated_delta_rule", "channel_decay: expected heads that are not tiled");
  const auto require_values = [&](const HeadColumns& c, int64_t width) {
    require_columns(s.tiled ? HeadColumns{c.first, s.values_per_key() * width} : c, s.values_per_key() * width);
  };
  for (const HeadColumns* c : {&args.v, &args.z}) require_values(*c, s.value_dim);
  require_values(args.b, 1);
  require_values(args.a, s.decays());
  for (size_t i = 0; i < 3; ++i)
    require_shape(args.conv[i], "gated_delta_rule", "conv", s.conv_width, i < 2 ? s.key_heads * s.key_dim : s.values());
  require_shape(args.rate, "gated_delta_rule", "rate", 1, s.value_heads);
  require_shape(args.dt_bias, "gated_delta_rule", "dt_bias", 1, s.value_heads * s.decays());
  require_shape(args.norm, "gated_delta_rule", "norm", 1, s.value_dim);
  for (const WeightView* w : {&args.conv[0], &args.conv[1], &args.conv[2], &args.rate, &args.dt_bias})
    require(w->dtype == DType::kF32, "gated_delta_rule", "conv, rate and dt_bias must be float32");
  const int64_t state_bytes = s.state_size() * int64_t(sizeof(float));
  require(states.data && states.stride >= state_bytes, "gated_delta_rule", "expected states of the shape's size");
  const RowsOut rows = rows_out(out, "gated_delta_rule", batch.num_rows, s.values());
  if (batch.num_rows == 0) return;
  require(batch.state_slots && batch.query_start, "gated_delta_rule", "expected the sequences' rows and slots");
  Scope scope(this, kGatedDelta, s.conv_width * s.channels() * int64_t(sizeof(float)) + batch.num_seqs * state_bytes);
  do_gated_delta(args, batch, states, rows);
}

namespace {

void require_states(const BatchView& batch, const StateView& states, int64_t size, const char* op) {
  require(states.data && states.stride >= size * int64_t(sizeof(float)), op, "expected states of the shape's size");
  require(batch.num_rows == 0 || (batch.state_slots && batch.query_start), op, "expected the sequences' rows and slots");
}

void require_float32(const WeightView& w, const char* op, const char* what) {
  if (!w.empty() && w.dtype != DType::kF32) invalid(op, what, " must be float32, got ", dtype_name(w.dtype));
}

}  // namespace

void Backend::mamba2(const Mamba2Args& args, const BatchView& batch, const StateView& states, Activations& out) {
  const Mamba2Shape& s = args.shape;
  require(s.heads > 0 && s.head_dim > 0 && s.groups > 0 && s.state_dim > 0 && s.heads % s.groups == 0, "mamba2",
          "expected heads, a multiple of the groups");
  require(s.conv_width >= 2 && s.conv_width <= DeltaShape::kMaxConvWidth, "mamba2", "expected a convolution over 2 to 16 inputs");
  require(args.x_stride >= s.row_columns(), "mamba2", "columns reach past x_stride");
  require_shape(args.conv, "mamba2", "conv", s.conv_width, s.channels());
  require_vector(args.conv_bias, "mamba2", "conv_bias", s.channels());
  for (const auto& [w, what] : {std::pair(&args.rate, "rate"), {&args.dt_bias, "dt_bias"}, {&args.skip, "skip"}})
    require_shape(*w, "mamba2", what, 1, s.heads);
  require_shape(args.norm, "mamba2", "norm", 1, s.values());
  for (const WeightView* w : {&args.conv, &args.conv_bias, &args.rate, &args.dt_bias, &args.skip})
    require_float32(*w, "mamba2", "weights but the norm's");
  require_states(batch, states, s.state_size(), "mamba2");
  const RowsOut rows = rows_out(out, "mamba2", batch.num_rows, s.values());
  if (batch.num_rows == 0) return;
  Scope scope(this, kMamba2, args.conv.bytes() + batch.num_seqs * s.state_size() * int64_t(sizeof(float)));
  do_mamba2(args, batch, states, rows);
}

void Backend::short_conv(const ShortConvArgs& args, const BatchView& batch, const StateView& states, Activations& out) {
  const int64_t width = args.conv.rows;
  require(args.channels > 0 && args.x_stride >= 3 * args.channels, "short_conv", "columns reach past x_stride");
  require(width >= 2 && width <= DeltaShape::kMaxConvWidth, "short_conv", "expected a convolution over 2 to 16 inputs");
  require_shape(args.conv, "short_conv", "conv", width, args.channels);
  require_vector(args.bias, "short_conv", "bias", args.channels);
  require_float32(args.conv, "short_conv", "conv");
  require_float32(args.bias, "short_conv", "bias");
  require_states(batch, states, args.state_size(), "short_conv");
  const RowsOut rows = rows_out(out, "short_conv", batch.num_rows, args.channels);
  if (batch.num_rows == 0) return;
  Scope scope(this, kShortConv, args.conv.bytes() + batch.num_seqs * args.state_size() * int64_t(sizeof(float)));
  do_short_conv(args, batch, states, rows);
}

}  // namespace lynx_rt
