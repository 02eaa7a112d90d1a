#include "model/mixers/kda.h"

#include <algorithm>
#include <tuple>

namespace lynx_rt {

void mix(const KdaWeights& w, const MixerStep& s) {
  const DeltaShape& d = s.config.delta;
  Workspace& ws = s.workspace;
  const int64_t columns = d.values(), z = 3 * columns, a = z + columns, b = a + columns, stride = d.projected_columns();
  GatedDeltaArgs args{};
  args.x = ws.qkv.get();
  args.x_stride = stride;
  args.shape = d;
  args.q = {0, d.key_dim};
  args.k = {columns, d.key_dim};
  args.v = {2 * columns, d.value_dim};
  args.z = {z, d.value_dim};
  args.a = {a, d.key_dim};
  args.b = {b, 1};
  std::copy_n(w.conv, 3, args.conv);
  args.rate = w.rate;
  args.dt_bias = w.dt_bias;
  args.norm = w.norm;
  args.eps = s.config.rms_norm_eps;
  args.sigmoid_gate = true;

  const LinearPart parts[] = {{w.q_proj, {}, 0}, {w.k_proj, {}, columns}, {w.v_proj, {}, 2 * columns}, {w.b_proj, {}, b}};
  s.backend.linear(s.input, parts, false, args.x, stride);
  for (const auto& [down, up, column] : {std::tuple(&w.f_a_proj, &w.f_b_proj, a), {&w.g_a_proj, &w.g_b_proj, z}}) {
    const LinearPart first{*down, {}, 0}, second{*up, {}, column};
    s.backend.linear(s.input, {&first, 1}, false, ws.q_a.get(), down->rows);
    s.backend.linear(Activations(ws.q_a.get(), s.batch.num_rows, down->rows), {&second, 1}, false, args.x, stride);
  }
  s.backend.gated_delta_rule(args, s.batch, s.states, ws.attended);
  add_attended(s, ws.attended, w.o_proj, {});
}

}  // namespace lynx_rt
