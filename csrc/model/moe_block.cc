// norm -> router -> route -> expert_ffn and the shared expert + residual; or, in a dense layer, norm -> mlp + residual.
#include "model/decoder.h"

namespace lynx_rt {

PendingSum Decoder::moe_block(const LayerWeights& w, const BatchView& batch, const Selection& selection, int64_t moe_layer,
                              const MoeObserver& observe) {
  const ModelConfig& m = config_;
  Workspace& ws = workspace_;
  RouterRule rule = m.router;
  rule.bias = static_cast<const float*>(w.choice_bias.data);
  // The residual multiplier is applied to the experts through the weights of the pairs, since expert_ffn() takes no factor of its
  // own.
  rule.scale = m.router.scale * m.residual_multiplier;
  float* scores = ws.scores.get() + (recording_.router_logits ? moe_layer * batch.num_rows * m.num_experts : 0);
  int32_t* ids = ws.ids.get() + (recording_.routed_experts ? moe_layer * batch.num_rows * m.num_experts_per_tok : 0);
  wanted_.resize(costs_ ? size_t(m.num_experts) : 0);
  Routing routing{ids, ws.weights.get(), ws.active.get(), 0, wanted_.empty() ? nullptr : wanted_.data()};
  const ExpertTable& experts = experts_[size_t(moe_layer)];
  DispatchPlan plan{ws.offsets.get(), ws.sorted_of_pair.get(), ws.pair_of_sorted.get()};
  norm(ws.x.get(), w.post_attention_norm, w.post_attention_norm_bias, batch.num_rows);
  backend_.router(ws.normed.f32(), w.router, w.router_bias, batch.num_rows, scores);
  const bool decodes = batch.phase == Phase::kDecodeOnly;
  backend_.route(scores, batch, rule, selection, routing, plan, costs_ ? costs_->cost(moe_layer) : std::span<const uint8_t>());
  const std::span active(routing.active, size_t(routing.num_active)), wanted(routing.wanted, size_t(routing.num_wanted));
  if (cache_ && decodes) cache_->note(moe_layer, active, wanted);
  // Experts are read while the shared expert is computed.
  ExpertStore::Lease lease;
  if (store_ && batch.num_rows > 0) {
    lease = store_->acquire(moe_layer, active, wanted, decodes);
    if (prefetch_ && decodes) prefetch_->hint(moe_layer, ws.x.get(), batch.num_rows);
  }
  if (observe) observe({moe_layer, batch.num_rows, ws.normed.f32(), ids, experts});
  if (m.shared_expert_width > 0) backend_.mlp(ws.normed, w.shared_expert, w.shared_expert_gate, ws.x.get());
  return backend_.expert_ffn(ws.normed, experts, rule, m.ffn, routing, plan, ws.x.get());
}

void Decoder::mlp_block(const LayerWeights& w, const BatchView& batch) {
  Workspace& ws = workspace_;
  norm(ws.x.get(), w.post_attention_norm, w.post_attention_norm_bias, batch.num_rows);
  backend_.mlp(ws.normed, w.mlp, {}, ws.x.get());
}

}  // namespace lynx_rt
