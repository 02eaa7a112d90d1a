#include "model/mixers/short_conv.h"

namespace lynx_rt {

void mix(const ShortConvWeights& w, const MixerStep& s) {
  const int64_t h = s.config.hidden_size;
  Workspace& ws = s.workspace;
  const LinearPart in{w.in_proj, w.in_bias, 0};
  s.backend.linear(s.input, {&in, 1}, false, ws.qkv.get(), 3 * h);
  s.backend.short_conv({ws.qkv.get(), 3 * h, h, w.conv, w.conv_bias}, s.batch, s.states, ws.attended);
  add_attended(s, ws.attended, w.out_proj, w.out_bias);
}

}  // namespace lynx_rt
