#include "engine/recording.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "engine/engine_core.h"

namespace lynx_rt {

void RoutedExpertsTable::store(const std::vector<int32_t>& ids, std::span<const int64_t> slots) {
  const int64_t width = num_layers_ * top_k_;
  for (size_t t = 0; t < slots.size(); ++t) {
    std::vector<int16_t>& page = pages_[size_t(slots[t] / block_size_)];
    page.resize(size_t(block_size_ * width));
    std::transform(ids.begin() + int64_t(t) * width, ids.begin() + int64_t(t + 1) * width,
                   page.begin() + slots[t] % block_size_ * width, [](int32_t id) { return int16_t(id); });
  }
}

RoutedExperts RoutedExpertsTable::gather(const Request& request, int64_t begin, int64_t end) const {
  const int64_t width = num_layers_ * top_k_;
  RoutedExperts out{end - begin, num_layers_, top_k_, {}};
  out.ids.reserve(size_t((end - begin) * width));
  for (int64_t p = begin; p < end; ++p) {
    const auto from = pages_[size_t(request.blocks[size_t(p / block_size_)])].begin() + p % block_size_ * width;
    out.ids.insert(out.ids.end(), from, from + width);
  }
  return out;
}

// After the step has run: `batch` in host memory.
void EngineCore::record(const ScheduledStep& step, const BatchView& batch) {
  if (!records_routed_experts()) return;
  decoder_.read_routed_experts(routed_ids_);
  if (options_.enable_return_routed_experts) routed_experts_.store(routed_ids_, {batch.slots, size_t(batch.num_rows)});
  if (!options_.record_router_logits || batch.phase != Phase::kDecodeOnly) return;

  RouterLogits& r = router_logits_;
  if (config_.choice_bias && r.step.empty()) decoder_.read_choice_bias(r.choice_bias);
  std::vector<float> scores;
  decoder_.read_router_logits(scores);
  r.scores.insert(r.scores.end(), scores.begin(), scores.end());
  r.routed_experts.insert(r.routed_experts.end(), routed_ids_.begin(), routed_ids_.end());
  for (size_t i = 0; i < step.requests.size(); ++i) {
    r.step.push_back(recorded_steps_);
    r.request.push_back(step.requests[i].request->id);
    r.position.push_back(batch.positions[i]);
    r.exact.push_back(batch.exact[i]);
  }
  ++recorded_steps_;
}

// What is new for the caller: positions since the last time, or, where a preemption had them computed again, all.
RoutedExperts EngineCore::take_routed_experts(Request& r) {
  if (!options_.enable_return_routed_experts) return {};
  const int64_t begin = r.num_routed_returned;
  r.num_routed_returned = r.num_computed;
  return routed_experts_.gather(r, begin, r.num_computed);
}

RouterLogits EngineCore::take_router_logits() {
  if (!options_.record_router_logits) invalid("record_router_logits", "the engine was made without it");
  RouterLogits out = std::exchange(router_logits_, {});
  out.num_model_layers = config_.num_layers;
  for (int64_t l = 0; l < config_.num_layers; ++l)
    if (config_.layers[size_t(l)].moe) out.layers.push_back(int32_t(l));
  out.num_experts = config_.num_experts;
  out.num_experts_per_tok = config_.num_experts_per_tok;
  out.norm_topk_prob = config_.router.norm_topk;
  out.router_kind = to_string(config_.router.kind);
  out.num_groups = config_.router.num_groups;
  out.top_groups = config_.router.top_groups;
  out.group_top2 = config_.router.group_top2;
  return out;
}

}  // namespace lynx_rt
