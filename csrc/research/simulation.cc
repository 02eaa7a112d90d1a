#include "research/simulation.h"

#include <algorithm>

#include "base/error.h"
#include "research/recording.h"

namespace lynx_rt {

namespace {

ModelConfig config_of(const RecordedRows& r) {
  if (r.num_experts_per_tok < 1 || r.num_experts_per_tok > r.num_experts)
    invalid("num_experts_per_tok", "expected 1..", r.num_experts, ", got ", r.num_experts_per_tok);
  ModelConfig c;
  c.num_layers = r.num_model_layers;
  c.num_experts = r.num_experts;
  c.num_experts_per_tok = r.num_experts_per_tok;
  c.layers.resize(size_t(r.num_model_layers));
  for (size_t i = 0; i < r.layers.size(); ++i) {
    const int64_t l = r.layers[i];
    if (l < 0 || l >= r.num_model_layers || (i > 0 && l <= r.layers[i - 1]))
      invalid("layers", "expected rising numbers in [0, ", r.num_model_layers, "), got ", l);
    c.layers[size_t(l)].moe = true;
  }
  return c;
}

// Returns the rows of the largest step. Throws where a step or a row does not exist.
int64_t check_steps(int64_t num_rows, std::span<const int64_t> order, std::span<const int64_t> offsets) {
  for (int64_t row : order)
    if (row < 0 || row >= num_rows) invalid("order", "expected rows in [0, ", num_rows, "), got ", row);
  if (offsets.empty() || offsets.front() != 0 || offsets.back() != int64_t(order.size()))
    invalid("offsets", "expected 0 first and ", order.size(), " last");
  int64_t largest = 0;
  for (size_t s = 1; s < offsets.size(); ++s) {
    if (offsets[s] <= offsets[s - 1]) invalid("offsets", "expected rising values, got ", offsets[s - 1], " before ", offsets[s]);
    largest = std::max(largest, offsets[s] - offsets[s - 1]);
  }
  return largest;
}

std::unique_ptr<Backend> make_host_backend() {
  BackendOptions options;
  options.device = "cpu";
  options.num_threads = 1;
  return make_backend(options);
}

}  // namespace

RecordedRouter::RecordedRouter(const RecordedRows& r, const std::string& selection, std::span<const int64_t> order,
                               std::span<const int64_t> offsets)
    : rows_(r),
      order_(order),
      offsets_(offsets),
      config_(config_of(r)),
      backend_(make_host_backend()),
      tables_(*backend_, config_),
      rule_(r.router) {
  const int64_t largest = check_steps(r.num_rows, order, offsets);
  const int64_t num_experts = r.num_experts, k = r.num_experts_per_tok;
  tables_.begin();
  selections_ = tables_.resolve(selection);
  tables_.commit();
  rule_.num_experts = int(num_experts);
  rule_.top_k = int(k);
  rule_.norm_topk = r.norm_topk_prob;
  check_rule(rule_);
  scores_.resize(size_t(largest * num_experts));
  exact_.resize(size_t(largest));
  ids_.resize(size_t(largest * k));
  weights_.resize(size_t(largest * k));
  for (auto* experts : {&active_, &wanted_}) experts->resize(size_t(num_experts));
  wanted_mass_.resize(size_t(num_experts));
  routing_ = {ids_.data(), weights_.data(), active_.data(), 0, wanted_.data(), 0, wanted_mass_.data()};
}

std::span<const int64_t> RecordedRouter::begin_step() {
  const int64_t begin = offsets_[size_t(next_step_)], end = offsets_[size_t(next_step_ + 1)];
  ++next_step_;
  step_ = order_.subspan(size_t(begin), size_t(end - begin));
  for (size_t t = 0; t < step_.size(); ++t) exact_[t] = rows_.exact[step_[t]];
  replayed_ = tables_.next_replayed(selections_, Phase::kDecodeOnly, int64_t(step_.size()));
  return step_;
}

SelectionStats RecordedRouter::route(int64_t l, const uint8_t* cost) {
  const int64_t count = int64_t(step_.size()), num_experts = rows_.num_experts;
  for (int64_t t = 0; t < count; ++t)
    std::copy_n(rows_.scores + (step_[size_t(t)] * num_layers() + l) * num_experts, num_experts,
                scores_.data() + t * num_experts);
  if (rows_.choice_bias) rule_.bias = rows_.choice_bias + l * num_experts;
  Selection layer = selections_.layers[size_t(l)];
  if (replayed_) layer.replay = replayed_ + l * count * rows_.num_experts_per_tok;
  return selector_.run(scores_.data(), count, rule_, layer, Phase::kDecodeOnly, exact_.data(), routing_, nullptr, cost);
}

std::vector<EngineStats::Layer> simulate(const RecordedRows& r, const std::string& selection, std::span<const int64_t> order,
                                         std::span<const int64_t> offsets, int16_t* routed_experts) {
  RecordedRouter router(r, selection, order, offsets);
  const int64_t k = r.num_experts_per_tok;
  std::vector<EngineStats::Layer> sums;
  for (const int32_t l : r.layers) sums.emplace_back().layer = l;
  for (int64_t s = 0; s < router.num_steps(); ++s) {
    const int64_t count = int64_t(router.begin_step().size());
    for (int64_t l = 0; l < router.num_layers(); ++l) {
      add_step(sums[size_t(l)], router.route(l));
      if (!routed_experts) continue;
      for (int64_t t = 0; t < count; ++t)
        std::copy_n(router.ids().data() + t * k, k, routed_experts + ((offsets[size_t(s)] + t) * router.num_layers() + l) * k);
    }
  }
  return sums;
}

}  // namespace lynx_rt
