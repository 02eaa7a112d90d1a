// norm -> router -> route -> expert_ffn and the shared expert + residual; or, in a dense layer, norm -> mlp + residual. With sandwich
// norms, what they add is normed before it is added; with output norms, the rows that enter are not normed.
#include <algorithm>

#include "model/decoder.h"
#include "routing/dispatch.h"
#include "routing/miss_rule.h"

namespace lynx_rt {

Decoder::Routed Decoder::route_rows(const LayerWeights& w, const float* rows, const BatchView& batch, const Selection& selection,
                                    int64_t moe_layer) {
  const ModelConfig& m = config_;
  Workspace& ws = workspace_;
  float* scores = ws.scores.get() + (recording_.router_logits ? moe_layer * batch.num_rows * m.num_experts : 0);
  int32_t* ids = ws.ids.get() + (recording_.routed_experts ? moe_layer * batch.num_rows * m.num_experts_per_tok : 0);
  Routed r{moe_layer,
           experts_[size_t(moe_layer)],
           m.router,
           m.ffn,
           {ids, ws.weights.get(), ws.active.get(), 0},
           {ws.offsets.get(), ws.sorted_of_pair.get(), ws.pair_of_sorted.get()},
           {}};
  const bool on_host = backend_.host_memory();
  needed_.clear();
  if (on_host) {
    wanted_.resize(size_t(m.num_experts));
    r.routing.wanted = wanted_.data();
  }
  if (costs_) {
    wanted_mass_.resize(size_t(m.num_experts));
    r.routing.wanted_mass = wanted_mass_.data();
  }
  r.rule.bias = static_cast<const float*>(w.choice_bias.data);
  // The residual multiplier is applied to the experts through the weights of the pairs, since expert_ffn() takes no factor of its
  // own.
  r.rule.scale = m.router.scale * m.residual_multiplier;
  r.ffn.expert_scale = static_cast<const float*>(w.sandwich.expert_scale.data);
  const bool decodes = batch.phase == Phase::kDecodeOnly, pregated = prefetch_ && prefetch_->pregated();
  if (pregated && moe_layer > 0)
    std::copy_n(prefetch_->scores(), batch.num_rows * m.num_experts, scores);
  else
    backend_.router(rows, w.router, w.router_bias, batch.num_rows, scores, m.router_multiplier);
  backend_.route(scores, batch, r.rule, selection, r.routing, r.plan,
                 costs_ ? costs_->cost(moe_layer) : std::span<const uint8_t>());
  if (store_ && (store_->rule().full >= 0 || store_->rule().skip < 1) &&
      apply_miss_rule(store_->rule().full, store_->rule().skip, costs_->cost(moe_layer).data(), m.num_experts, batch.num_rows,
                      m.num_experts_per_tok, r.routing, needed_))
    dispatch_pairs(r.routing, batch.num_rows, r.rule, r.plan);
  const std::span active(r.routing.active, size_t(r.routing.num_active)), wanted(r.routing.wanted, size_t(r.routing.num_wanted));
  const std::span<const float> mass(r.routing.wanted_mass, costs_ ? wanted.size() : 0);
  if (on_host) {
    uses_.resize(size_t(num_moe_layers_ * m.num_experts));
    uint8_t* uses = uses_.data() + moe_layer * m.num_experts;
    std::fill_n(uses, m.num_experts, uint8_t(0));
    for (int32_t e : wanted) uses[e] |= kWanted;
    for (int32_t e : active) uses[e] |= kRead;
  }
  if (cache_ && decodes) cache_->note(moe_layer, active, wanted, mass);
  if (store_ && batch.num_rows > 0) r.lease = store_->acquire(moe_layer, active, wanted, decodes, mass, needed_);
  if (prefetch_ && batch.num_rows > 0 && (decodes || pregated)) prefetch_->hint(moe_layer, ws.x.get(), batch.num_rows);
  if (next_router_ && decodes && moe_layer + 1 < num_moe_layers_) {
    const int64_t size = batch.num_rows * m.num_experts;
    next_logits_.resize(size_t((num_moe_layers_ - 1) * size));
    std::copy_n(next_router_->score(moe_layer, ws.x.get(), batch.num_rows), size, next_logits_.data() + moe_layer * size);
  }
  return r;
}

PendingSum Decoder::moe_block(const LayerWeights& w, const BatchView& batch, const Selection& selection, int64_t moe_layer,
                              const MoeObserver& observe, PendingSum pending) {
  const ModelConfig& m = config_;
  Workspace& ws = workspace_;
  norm(ws.x.get(), w.post_attention_norm, w.post_attention_norm_bias, batch.num_rows, std::move(pending));
  const Routed r = route_rows(w, ws.normed.f32(), batch, selection, moe_layer);
  if (observe) observe({moe_layer, batch.num_rows, ws.normed.f32(), r.routing.ids, r.experts});
  // Experts are read while the shared expert is computed.
  if (m.shared_expert_width > 0)
    backend_.mlp(ws.normed, w.shared_expert, w.shared_expert_gate, ws.x.get(), m.mlp_activation, true, m.residual_multiplier);
  return backend_.expert_ffn(ws.normed, r.experts, r.rule, r.ffn, r.routing, r.plan, ws.x.get());
}

void Decoder::mlp_block(const LayerWeights& w, const BatchView& batch, PendingSum pending) {
  Workspace& ws = workspace_;
  norm(ws.x.get(), w.post_attention_norm, w.post_attention_norm_bias, batch.num_rows, std::move(pending));
  backend_.mlp(ws.normed, w.mlp, {}, ws.x.get(), config_.mlp_activation, true, config_.residual_multiplier);
}

void Decoder::sandwich_moe_block(const LayerWeights& w, const BatchView& batch, const Selection& selection, int64_t moe_layer,
                                 const MoeObserver& observe) {
  const ModelConfig& m = config_;
  const SandwichWeights& s = w.sandwich;
  Workspace& ws = workspace_;
  float *x = ws.x.get(), *branch = ws.branch.get(), *both = ws.both_branches.get();
  const int64_t rows = batch.num_rows;
  norm(x, s.router_in, {}, rows);
  const Routed r = route_rows(w, ws.normed.f32(), batch, selection, moe_layer);
  norm(x, w.post_attention_norm, {}, rows);
  backend_.mlp(ws.normed, w.shared_expert, {}, branch, m.mlp_activation, false);
  backend_.add_rmsnorm(branch, s.mlp_out, m.rms_norm_eps, rows, false, both);
  norm(x, s.experts_in, {}, rows);
  if (observe) observe({moe_layer, rows, ws.normed.f32(), r.routing.ids, r.experts});
  PendingSum sum = backend_.expert_ffn(ws.normed, r.experts, r.rule, r.ffn, r.routing, r.plan, branch, false);
  backend_.add_rmsnorm(branch, s.experts_out, m.rms_norm_eps, rows, true, both, {}, std::move(sum));
  backend_.add_rmsnorm(both, s.block_out, m.rms_norm_eps, rows, true, x, s.layer_scalar);
}

void Decoder::output_normed_moe_block(const LayerWeights& w, const BatchView& batch, const Selection& selection,
                                      int64_t moe_layer, const MoeObserver& observe) {
  const ModelConfig& m = config_;
  Workspace& ws = workspace_;
  float *x = ws.x.get(), *branch = ws.branch.get();
  const int64_t rows = batch.num_rows;
  const Activations raw(x, rows, m.hidden_size);
  const Routed r = route_rows(w, x, batch, selection, moe_layer);
  if (observe) observe({moe_layer, rows, x, r.routing.ids, r.experts});
  PendingSum sum = backend_.expert_ffn(raw, r.experts, r.rule, r.ffn, r.routing, r.plan, branch, false);
  backend_.add_rmsnorm(branch, w.sandwich.block_out, m.rms_norm_eps, rows, true, x, {}, std::move(sum));
}

void Decoder::sandwich_mlp_block(const LayerWeights& w, const BatchView& batch) {
  Workspace& ws = workspace_;
  norm(ws.x.get(), w.post_attention_norm, {}, batch.num_rows);
  backend_.mlp(ws.normed, w.mlp, {}, ws.branch.get(), config_.mlp_activation, false);
  backend_.add_rmsnorm(ws.branch.get(), w.sandwich.block_out, config_.rms_norm_eps, batch.num_rows, true, ws.x.get(),
                       w.sandwich.layer_scalar);
}

}  // namespace lynx_rt
