#include "model/mixers/gated_delta.h"

#include <algorithm>

namespace lynx_rt {

void mix(const GatedDeltaWeights& w, const MixerStep& s) {
  const DeltaShape& d = s.config.delta;
  Workspace& ws = s.workspace;
  const int64_t keys = d.key_heads * d.key_dim, r = d.values_per_key(), of_values = r * d.value_dim;
  const int64_t z = d.channels(), b = z + d.values(), a = b + d.value_heads, stride = d.projected_columns();

  GatedDeltaArgs args{};
  args.x = ws.qkv.get();
  args.x_stride = stride;
  args.shape = d;
  std::copy_n(w.conv, 3, args.conv);
  args.rate = w.rate;
  args.dt_bias = w.dt_bias;
  args.norm = w.norm;
  args.eps = s.config.rms_norm_eps;
  LinearPart parts[4] = {{w.in_proj_qkv, {}, 0}};
  size_t count = 1;
  if (w.in_proj_z.empty()) {
    const int64_t group = 2 * d.key_dim + 2 * of_values;
    args.q = {0, group};
    args.k = {d.key_dim, group};
    args.v = {2 * d.key_dim, group};
    args.z = {2 * d.key_dim + of_values, group};
  } else {
    parts[count++] = {w.in_proj_z, {}, z};
    args.q = {0, d.key_dim};
    args.k = {keys, d.key_dim};
    args.v = {2 * keys, of_values};
    args.z = {z, of_values};
  }
  parts[count++] = {w.in_proj_b, {}, b};
  if (w.in_proj_a.empty()) {
    args.b = {b, 2 * r};
    args.a = {b + r, 2 * r};
  } else {
    parts[count++] = {w.in_proj_a, {}, a};
    args.b = {b, r};
    args.a = {a, r};
  }
  s.backend.linear(s.input, {parts, count}, false, args.x, stride);
  s.backend.gated_delta_rule(args, s.batch, s.states, ws.attended);
  add_attended(s, ws.attended, w.out_proj, {});
}

}  // namespace lynx_rt
