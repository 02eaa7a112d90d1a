#include "model/mixers/gqa.h"

#include <span>

namespace lynx_rt {

void mix(const GqaWeights& w, const MixerStep& s) {
  const ModelConfig& m = s.config;
  const LayerConfig& layer = s.layer;
  Workspace& ws = s.workspace;
  const int64_t d = m.head_dim_of(layer), q_size = m.num_heads * d * (m.attention_gate ? 2 : 1),
                kv_size = m.kv_heads_of(layer) * d, stride = q_size + 2 * kv_size;
  const LinearPart parts[] = {{w.q_proj, w.q_bias, 0}, {w.k_proj, w.k_bias, q_size}, {w.v_proj, w.v_bias, q_size + kv_size}};
  s.backend.linear(s.input, std::span(parts).first(layer.v_from_k ? 2 : 3), false, ws.qkv.get(), stride);

  QkvPostArgs post{};
  post.qkv = ws.qkv.get();
  post.num_heads = m.num_heads;
  // Llama 4 norms q and k of the layers that have a rope, and scales q of those that have none.
  post.norm = m.qk_norm == QkNorm::kUnitAfterRope && !layer.rope ? QkNorm::kNone : m.qk_norm;
  post.q_norm = w.q_norm;
  post.k_norm = w.k_norm;
  post.eps = m.rms_norm_eps;
  post.rope = s.rope;
  post.v_norm = m.v_norm;
  post.v_from_k = layer.v_from_k;
  post.clip = m.clip_qkv;
  post.gated = m.attention_gate;
  if (!layer.rope) {
    post.rope.dim = 0;
    post.temperature_floor = m.temperature_floor;
    post.temperature_scale = m.temperature_scale;
  }
  s.backend.qkv_post(post, s.batch, s.cache);

  const AttentionArgs args{ws.qkv.get(), stride,      m.num_heads, m.attention_scale,
                           layer.window, layer.chunk, w.sinks,     m.attention_gate};
  s.backend.attention(args, s.batch, s.cache, ws.attended);
  add_attended(s, ws.attended, w.o_proj, w.o_bias);
}

}  // namespace lynx_rt
