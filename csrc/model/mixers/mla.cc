#include "model/mixers/mla.h"

namespace lynx_rt {

void mix(const MlaWeights& w, const MixerStep& s) {
  const ModelConfig& m = s.config;
  const int64_t heads = m.num_heads, latent = m.kv_lora_rank, width = latent + m.rope.dim, rows = s.batch.num_rows;
  Workspace& ws = s.workspace;
  const LinearPart kv{w.kv_a_proj, w.kv_a_bias, 0};
  s.backend.linear(s.input, {&kv, 1}, false, ws.kv_a.get(), width);
  LinearPart q{w.q_proj, {}, 0};
  if (m.q_lora_rank > 0) {
    const LinearPart a{w.q_a_proj, w.q_a_bias, 0};
    s.backend.linear(s.input, {&a, 1}, false, ws.q_a.get(), m.q_lora_rank);
    s.backend.rmsnorm(ws.q_a.get(), w.q_a_norm, m.latent_norm_eps, rows, ws.normed);
    q.weight = w.q_b_proj;
  }
  s.backend.linear(m.q_lora_rank > 0 ? ws.normed : s.input, {&q, 1}, false, ws.qkv.get(), heads * m.head_dim);
  s.backend.head_linear(Activations(ws.qkv.get(), rows, heads * m.head_dim), m.head_dim, w.k_absorb, ws.latent_q.get(),
                        heads * width, width);

  const MlaPostArgs post{ws.qkv.get(), ws.kv_a.get(),     heads,  m.qk_nope_head_dim,
                         w.kv_a_norm,  m.latent_norm_eps, s.rope, ws.latent_q.get()};
  s.backend.mla_post(post, s.batch, s.cache);
  const AttentionArgs args{ws.latent_q.get(), heads * width, heads, m.attention_scale, s.layer.window, s.layer.chunk, {}};
  s.backend.attention(args, s.batch, s.cache, ws.attended);
  s.backend.head_linear(ws.attended, latent, w.v_absorb, ws.head_values.get(), heads * m.v_head_dim, m.v_head_dim);
  add_attended(s, Activations(ws.head_values.get(), rows, heads * m.v_head_dim), w.o_proj, w.o_bias);
}

}  // namespace lynx_rt
