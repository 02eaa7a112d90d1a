#include "model/mixers/mamba2.h"

namespace lynx_rt {

void mix(const Mamba2Weights& w, const MixerStep& s) {
  const ModelConfig& m = s.config;
  Workspace& ws = s.workspace;
  Mamba2Args args{};
  args.x = ws.qkv.get();
  args.x_stride = m.mamba.row_columns();
  args.shape = m.mamba;
  args.conv = w.conv;
  args.conv_bias = w.conv_bias;
  args.rate = w.rate;
  args.dt_bias = w.dt_bias;
  args.skip = w.skip;
  args.norm = w.norm;
  args.eps = m.rms_norm_eps;
  args.min_dt = m.min_dt;
  args.max_dt = m.max_dt;
  const LinearPart in{w.in_proj, w.in_bias, 0};
  s.backend.linear(s.input, {&in, 1}, false, args.x, args.x_stride);
  s.backend.mamba2(args, s.batch, s.states, ws.attended);
  add_attended(s, ws.attended, w.out_proj, w.out_bias);
}

}  // namespace lynx_rt
