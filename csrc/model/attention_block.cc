// norm -> q, k, v projections -> q/k norm, rope, KV write -> paged attention -> output projection + residual.
#include <cmath>

#include "model/decoder.h"

namespace lynx_rt {

void Decoder::attention_block(const LayerWeights& w, const BatchView& batch, const KvCacheView& cache) {
  const ModelConfig& m = config_;
  int64_t q_size = m.num_heads * m.head_dim, kv_size = m.num_kv_heads * m.head_dim, stride = q_size + 2 * kv_size;
  Workspace& ws = workspace_;
  backend_.rmsnorm(ws.x.get(), w.input_norm, m.rms_norm_eps, batch.num_rows, ws.normed.get());
  LinearPart parts[] = {{w.q_proj, w.q_bias, 0}, {w.k_proj, w.k_bias, q_size}, {w.v_proj, w.v_bias, q_size + kv_size}};
  backend_.linear(ws.normed.get(), batch.num_rows, parts, false, ws.qkv.get(), stride);
  QkvPostArgs post{ws.qkv.get(), m.num_heads, w.q_norm, w.k_norm, m.rms_norm_eps, {rope_cos_.get(), rope_sin_.get()}};
  backend_.qkv_post(post, batch, cache);
  float scale = 1.0f / std::sqrt(float(m.head_dim));
  backend_.attention(ws.qkv.get(), stride, m.num_heads, scale, batch, cache, ws.attended.get());
  LinearPart out{w.o_proj, w.o_bias, 0};
  backend_.linear(ws.attended.get(), batch.num_rows, {&out, 1}, true, ws.x.get(), m.hidden_size);
}

}  // namespace lynx_rt
