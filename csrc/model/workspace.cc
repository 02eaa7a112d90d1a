#include "model/workspace.h"

#include <algorithm>

#include "model/sequence_memory.h"

namespace lynx_rt {

namespace {

int64_t kept_layers(const ModelConfig& m, bool recorded) { return recorded ? std::max<int64_t>(m.num_moe_layers(), 1) : 1; }

// Returns the most columns of the projections that a layer's mixer works on.
int64_t qkv_columns(const ModelConfig& m) {
  const int64_t heads = m.num_heads * (m.attention_gate ? 2 : 1);
  int64_t columns = std::max(heads * m.head_dim, m.delta.key_heads > 0 ? m.delta.projected_columns() : 0);
  if (m.has_mixer(MixerKind::kMamba2)) columns = std::max(columns, m.mamba.row_columns());
  if (m.has_mixer(MixerKind::kShortConv)) columns = std::max(columns, 3 * m.hidden_size);
  for (const LayerConfig& l : m.layers)
    if (l.mixer == MixerKind::kGqa) columns = std::max(columns, (heads + 2 * m.kv_heads_of(l)) * m.head_dim_of(l));
  return columns;
}

// Returns the columns between the two products of a low-rank projection.
int64_t low_rank(const ModelConfig& m) { return std::max(m.q_lora_rank, m.has_mixer(MixerKind::kKda) ? m.delta.key_dim : 0); }

// Returns the most columns of what a layer's mixer gives.
int64_t attended_columns(const ModelConfig& m) {
  int64_t columns = std::max(m.delta.values(), m.mamba.values());
  if (m.has_mixer(MixerKind::kShortConv)) columns = std::max(columns, m.hidden_size);
  for (const LayerConfig& l : m.layers) columns = std::max(columns, m.num_heads * kv_shape(m, l).v_head_dim);
  return columns;
}

// Returns kv_lora_rank + rope.dim; 0 without MLA.
int64_t latent_width(const ModelConfig& m) { return m.has_mixer(MixerKind::kMla) ? m.kv_lora_rank + m.rope.dim : 0; }

}  // namespace

Workspace::Workspace(Backend& b, const ModelConfig& m, int64_t t, int64_t l, StepRecording recording)
    : x(b, checked_mul(t, m.hidden_size, "workspace"), "workspace"),
      normed(b, t, std::max(m.hidden_size, m.q_lora_rank), "workspace"),
      qkv(b, checked_mul(t, qkv_columns(m), "workspace"), "workspace"),
      attended(b, t, attended_columns(m), "workspace"),
      branch(b, checked_mul(t, m.sandwich_norms || m.output_norms ? m.hidden_size : 0, "workspace"), "workspace"),
      both_branches(b, checked_mul(t, m.sandwich_norms ? m.hidden_size : 0, "workspace"), "workspace"),
      q_a(b, checked_mul(t, low_rank(m), "workspace"), "workspace"),
      kv_a(b, checked_mul(t, latent_width(m), "workspace"), "workspace"),
      latent_q(b, checked_mul(t, m.num_heads * latent_width(m), "workspace"), "workspace"),
      head_values(b, checked_mul(t, latent_width(m) ? m.num_heads * m.v_head_dim : 0, "workspace"), "workspace"),
      scores(b, checked_mul(t, m.num_experts * kept_layers(m, recording.router_logits), "workspace"), "workspace"),
      ids(b, checked_mul(t, m.num_experts_per_tok * kept_layers(m, recording.routed_experts), "workspace"), "workspace"),
      weights(b, checked_mul(t, m.num_experts_per_tok, "workspace"), "workspace"),
      active(b, m.num_experts, "workspace"),
      offsets(b, m.num_experts + 1, "workspace"),
      sorted_of_pair(b, checked_mul(t, m.num_experts_per_tok, "workspace"), "workspace"),
      pair_of_sorted(b, checked_mul(t, m.num_experts_per_tok, "workspace"), "workspace"),
      logit_rows(b, checked_mul(l, m.hidden_size, "workspace"), "workspace") {}

int64_t Workspace::bytes() const {
  return x.bytes() + normed.bytes() + branch.bytes() + both_branches.bytes() + qkv.bytes() + attended.bytes() + q_a.bytes() +
         kv_a.bytes() + latent_q.bytes() + head_values.bytes() + scores.bytes() + ids.bytes() + weights.bytes() + active.bytes() +
         offsets.bytes() + sorted_of_pair.bytes() + pair_of_sorted.bytes() + logit_rows.bytes();
}

}  // namespace lynx_rt
