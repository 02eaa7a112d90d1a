#include <algorithm>

#include "model/family.h"

namespace lynx_rt {

namespace {

int64_t bytes_of(const ExpertWeights& e) { return e.gate.bytes() + e.up.bytes() + e.down.bytes(); }

// Calls visit(view, use) for every weight that is not an expert's or a dense MLP's, and visit_experts(span) for those.
template <class Visit, class VisitExperts>
void visit_weights(ModelWeights& w, Visit visit, VisitExperts visit_experts) {
  visit(w.embed, WeightUse::kEmbed);
  for (LayerWeights& l : w.layers) {
    for (WeightView* v :
         {&l.input_norm, &l.post_attention_norm, &l.q_norm, &l.k_norm, &l.q_bias, &l.k_bias, &l.v_bias, &l.o_bias})
      visit(*v, WeightUse::kVector);
    for (WeightView* v : {&l.q_proj, &l.k_proj, &l.v_proj, &l.o_proj}) visit(*v, WeightUse::kMatrix);
    visit(l.router, WeightUse::kRouter);
    visit_experts(std::span(l.experts));
    if (!l.mlp.gate.empty()) visit_experts(std::span(&l.mlp, 1));
  }
  visit(w.final_norm, WeightUse::kVector);
  visit(w.lm_head, WeightUse::kHead);
}

}  // namespace

int64_t weight_bytes(const ModelWeights& weights) {
  int64_t total = 0;
  visit_weights(
      const_cast<ModelWeights&>(weights), [&](const WeightView& v, WeightUse) { total += v.bytes(); },
      [&](std::span<const ExpertWeights> experts) {
        for (const ExpertWeights& e : experts) total += bytes_of(e);
      });
  return weights.lm_head.data == weights.embed.data ? total - weights.lm_head.bytes() : total;
}

void place_weights(Backend& backend, ModelWeights& weights, const Progress& progress) {
  const int64_t total = weight_bytes(weights);
  int64_t done = 0;
  const auto report = [&](int64_t bytes) {
    done = std::min(total, done + bytes);  // a tied embedding is visited twice
    if (progress && bytes > 0) progress(done, total);
  };
  visit_weights(
      weights,
      [&](WeightView& v, WeightUse use) {
        const int64_t bytes = v.bytes();
        v = backend.place(v, use);
        report(bytes);
      },
      [&](std::span<ExpertWeights> experts) {
        int64_t bytes = 0;
        for (const ExpertWeights& e : experts) bytes += bytes_of(e);
        backend.place_experts(experts);
        report(bytes);
      });
}

}  // namespace lynx_rt
