#include <algorithm>
#include <array>
#include <vector>

#include "model/load_weights.h"

namespace lynx_rt {

namespace {

std::array<const WeightView*, 6> views(const ExpertWeights& e) {
  return {&e.gate, &e.up, &e.down, &e.gate_bias, &e.up_bias, &e.down_bias};
}

bool is_matrix(const ExpertWeights& e, const WeightView* v) { return v == &e.gate || v == &e.up || v == &e.down; }

int64_t bytes_of(const ExpertWeights& e) {
  int64_t bytes = 0;
  for (const WeightView* v : views(e)) bytes += v->bytes();
  return bytes;
}

// Calls visit(view, use) for every weight that is of no group, visit_experts(span) for those of an MLP, visit_heads(span) for
// head_linear()'s.
template <class Visit, class VisitExperts, class VisitHeads>
void visit_weights(ModelWeights& w, Visit visit, VisitExperts visit_experts, VisitHeads visit_heads) {
  visit(w.embed, WeightUse::kEmbed);
  for (LayerWeights& l : w.layers) {
    for (WeightView* v : {&l.input_norm, &l.input_norm_bias, &l.post_attention_norm, &l.post_attention_norm_bias, &l.q_norm,
                          &l.k_norm, &l.q_bias, &l.k_bias, &l.v_bias, &l.o_bias, &l.sinks, &l.q_a_bias, &l.kv_a_bias, &l.q_a_norm,
                          &l.kv_a_norm, &l.router_bias, &l.choice_bias})
      visit(*v, WeightUse::kVector);
    for (WeightView* v : {&l.q_proj, &l.k_proj, &l.v_proj, &l.o_proj, &l.q_a_proj, &l.q_b_proj, &l.kv_a_proj})
      visit(*v, WeightUse::kMatrix);
    visit_heads(std::span(l.k_absorb));
    visit_heads(std::span(l.v_absorb));
    visit(l.router, WeightUse::kRouter);
    visit(l.shared_expert_gate, WeightUse::kRouter);
    visit_experts(std::span(l.experts));
    for (ExpertWeights* e : {&l.shared_expert, &l.mlp})
      if (!e->gate.empty()) visit_experts(std::span(e, 1));
  }
  visit(w.final_norm, WeightUse::kVector);
  visit(w.final_norm_bias, WeightUse::kVector);
  visit(w.lm_head, WeightUse::kHead);
  visit(w.lm_head_bias, WeightUse::kVector);
}

int64_t bytes_of(std::span<const WeightView> heads) {
  int64_t bytes = 0;
  for (const WeightView& w : heads) bytes += w.bytes();
  return bytes;
}

}  // namespace

int64_t weight_bytes(const ModelWeights& weights) {
  int64_t total = 0;
  visit_weights(
      const_cast<ModelWeights&>(weights), [&](const WeightView& v, WeightUse) { total += v.bytes(); },
      [&](std::span<const ExpertWeights> experts) {
        for (const ExpertWeights& e : experts) total += bytes_of(e);
      },
      [&](std::span<const WeightView> heads) { total += bytes_of(heads); });
  return weights.lm_head.data == weights.embed.data ? total - weights.lm_head.bytes() : total;
}

void place_weights(Backend& backend, ModelWeights& weights, const Progress& progress) {
  const int64_t total = weight_bytes(weights);
  int64_t done = 0;
  const auto report = [&](int64_t bytes) {
    done = std::min(total, done + bytes);  // a tied embedding is visited twice
    if (progress && bytes > 0) progress(done, total);
  };
  // Values are read just before they are placed, and let go where they are then somewhere else. A tied embedding is placed
  // twice.
  const void* embedding = weights.embed.data;
  const auto release = [&](const WeightView& before, const WeightView& after) {
    if (before.data != after.data && before.data != embedding) weights.copies.release(before);
  };
  visit_weights(
      weights,
      [&](WeightView& v, WeightUse use) {
        const WeightView before = v;
        const bool product = use == WeightUse::kMatrix || use == WeightUse::kHead;
        if (!product || backend.reads_products()) weights.copies.read(v);
        v = backend.place(v, use);
        release(before, v);
        report(before.bytes());
      },
      [&](std::span<ExpertWeights> experts) {
        int64_t bytes = 0;
        const std::vector<ExpertWeights> before(experts.begin(), experts.end());
        for (const ExpertWeights& e : experts) {
          bytes += bytes_of(e);
          for (const WeightView* v : views(e))
            if (!is_matrix(e, v) || backend.reads_products()) weights.copies.read(*v);
        }
        backend.place_experts(experts);
        for (size_t e = 0; e < experts.size(); ++e)
          for (size_t i = 0; i < views(experts[e]).size(); ++i) release(*views(before[e])[i], *views(experts[e])[i]);
        report(bytes);
      },
      [&](std::span<WeightView> heads) {
        const int64_t bytes = bytes_of(heads);
        const std::vector<WeightView> before(heads.begin(), heads.end());
        if (backend.reads_products())
          for (const WeightView& v : heads) weights.copies.read(v);
        if (!heads.empty()) backend.place_heads(heads);
        for (size_t i = 0; i < heads.size(); ++i) release(before[i], heads[i]);
        report(bytes);
      });
}

}  // namespace lynx_rt
