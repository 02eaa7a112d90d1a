// norm -> q, k, v projections -> q/k norm, rope, KV write -> paged attention -> output projection + residual.
#include "model/decoder.h"

namespace lynx_rt {

void Decoder::norm(const float* x, const WeightView& weight, const WeightView& bias, int64_t num_rows, PendingSum pending) {
  if (config_.norm == NormKind::kLayer)
    backend_.layernorm(x, weight, bias, config_.rms_norm_eps, num_rows, workspace_.normed, std::move(pending));
  else
    backend_.rmsnorm(x, weight, config_.rms_norm_eps, num_rows, workspace_.normed, std::move(pending));
}

void Decoder::attention_block(const LayerWeights& w, const LayerConfig& layer, const BatchView& batch, const KvCacheView& cache,
                              PendingSum pending) {
  norm(workspace_.x.get(), w.input_norm, w.input_norm_bias, batch.num_rows, std::move(pending));
  if (config_.mla())
    latent_attention(w, layer, batch, cache);
  else
    grouped_attention(w, layer, batch, cache);
}

void Decoder::add_attention(const LayerWeights& w, const Activations& attended) {
  const LinearPart out{w.o_proj, w.o_bias, 0};
  backend_.linear(attended, {&out, 1}, true, workspace_.x.get(), config_.hidden_size, config_.residual_multiplier);
}

void Decoder::grouped_attention(const LayerWeights& w, const LayerConfig& layer, const BatchView& batch,
                                const KvCacheView& cache) {
  const ModelConfig& m = config_;
  const int64_t q_size = m.num_heads * m.head_dim, kv_size = m.num_kv_heads * m.head_dim, stride = q_size + 2 * kv_size;
  Workspace& ws = workspace_;
  LinearPart parts[] = {{w.q_proj, w.q_bias, 0}, {w.k_proj, w.k_bias, q_size}, {w.v_proj, w.v_bias, q_size + kv_size}};
  backend_.linear(ws.normed, parts, false, ws.qkv.get(), stride);

  QkvPostArgs post{};
  post.qkv = ws.qkv.get();
  post.num_heads = m.num_heads;
  // Llama 4 norms q and k of the layers that have a rope, and scales q of those that have none.
  post.norm = m.qk_norm == QkNorm::kUnitAfterRope && !layer.rope ? QkNorm::kNone : m.qk_norm;
  post.q_norm = w.q_norm;
  post.k_norm = w.k_norm;
  post.eps = m.rms_norm_eps;
  post.rope = rope_table(layer.rope ? m.rope.dim : 0);
  post.clip = m.clip_qkv;
  if (!layer.rope) {
    post.temperature_floor = m.temperature_floor;
    post.temperature_scale = m.temperature_scale;
  }
  backend_.qkv_post(post, batch, cache);

  const AttentionArgs args{ws.qkv.get(), stride, m.num_heads, m.attention_scale, layer.window, layer.chunk, w.sinks};
  backend_.attention(args, batch, cache, ws.attended);
  add_attention(w, ws.attended);
}

// Multi-head latent attention in the absorbed form: keys and values stay the latent vectors of the cache; instead, queries are
// taken to the latent space, and what they attend to is taken from it. Prefill as decode, so that a row has the same bits in
// both.
void Decoder::latent_attention(const LayerWeights& w, const LayerConfig& layer, const BatchView& batch,
                               const KvCacheView& cache) {
  const ModelConfig& m = config_;
  const int64_t heads = m.num_heads, latent = m.kv_lora_rank, width = latent + m.rope.dim, rows = batch.num_rows;
  Workspace& ws = workspace_;
  const LinearPart kv{w.kv_a_proj, w.kv_a_bias, 0};
  backend_.linear(ws.normed, {&kv, 1}, false, ws.kv_a.get(), width);
  LinearPart q{w.q_proj, {}, 0};
  if (m.q_lora_rank > 0) {
    const LinearPart a{w.q_a_proj, w.q_a_bias, 0};
    backend_.linear(ws.normed, {&a, 1}, false, ws.q_a.get(), m.q_lora_rank);
    backend_.rmsnorm(ws.q_a.get(), w.q_a_norm, m.latent_norm_eps, rows, ws.normed);
    q.weight = w.q_b_proj;
  }
  backend_.linear(ws.normed, {&q, 1}, false, ws.qkv.get(), heads * m.head_dim);
  backend_.head_linear(Activations(ws.qkv.get(), rows, heads * m.head_dim), m.head_dim, w.k_absorb, ws.latent_q.get(),
                       heads * width, width);

  MlaPostArgs post{ws.qkv.get(),           ws.kv_a.get(),    heads, m.qk_nope_head_dim, w.kv_a_norm, m.latent_norm_eps,
                   rope_table(m.rope.dim), ws.latent_q.get()};
  backend_.mla_post(post, batch, cache);
  const AttentionArgs args{ws.latent_q.get(), heads * width, heads, m.attention_scale, layer.window, layer.chunk, {}};
  backend_.attention(args, batch, cache, ws.attended);
  backend_.head_linear(ws.attended, latent, w.v_absorb, ws.head_values.get(), heads * m.v_head_dim, m.v_head_dim);
  add_attention(w, Activations(ws.head_values.get(), rows, heads * m.v_head_dim));
}

}  // namespace lynx_rt
