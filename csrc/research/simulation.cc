#include "research/simulation.h"

#include <algorithm>

#include "base/error.h"
#include "model/selection_tables.h"
#include "research/recording.h"
#include "routing/selector.h"

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

}  // namespace

std::vector<EngineStats::Layer> simulate(const RecordedRows& r, const std::string& selection, std::span<const int64_t> order,
                                         std::span<const int64_t> offsets, int16_t* routed_experts) {
  const int64_t largest = check_steps(r.num_rows, order, offsets);
  const int64_t num_layers = int64_t(r.layers.size()), num_experts = r.num_experts, k = r.num_experts_per_tok;
  const ModelConfig config = config_of(r);
  BackendOptions options;
  options.device = "cpu";
  options.num_threads = 1;
  const std::unique_ptr<Backend> backend = make_backend(options);  // keeps the tables
  SelectionTables tables(*backend, config);
  tables.begin();
  const LayerSelections selections = tables.resolve(selection);
  tables.commit();
  RouterRule rule = r.router;
  rule.num_experts = int(num_experts);
  rule.top_k = int(k);
  rule.norm_topk = r.norm_topk_prob;
  check_rule(rule);

  std::vector<float> scores(size_t(largest * num_experts));
  std::vector<uint8_t> exact(static_cast<size_t>(largest));
  std::vector<int32_t> ids(size_t(largest * k)), active(static_cast<size_t>(num_experts));
  std::vector<float> weights(size_t(largest * k));
  std::vector<EngineStats::Layer> sums;
  for (const int32_t l : r.layers) sums.emplace_back().layer = l;

  Selector selector;
  for (size_t s = 1; s < offsets.size(); ++s) {
    const std::span<const int64_t> rows = order.subspan(size_t(offsets[s - 1]), size_t(offsets[s] - offsets[s - 1]));
    const int64_t count = int64_t(rows.size());
    for (int64_t t = 0; t < count; ++t) exact[size_t(t)] = r.exact[rows[size_t(t)]];
    const int32_t* replayed = tables.next_replayed(selections, Phase::kDecodeOnly, count);
    for (int64_t l = 0; l < num_layers; ++l) {
      for (int64_t t = 0; t < count; ++t)
        std::copy_n(r.scores + (rows[size_t(t)] * num_layers + l) * num_experts, num_experts, scores.data() + t * num_experts);
      if (r.choice_bias) rule.bias = r.choice_bias + l * num_experts;
      Selection layer = selections.layers[size_t(l)];
      if (replayed) layer.replay = replayed + l * count * k;
      Routing routing{ids.data(), weights.data(), active.data(), 0};
      add_step(sums[size_t(l)], selector.run(scores.data(), count, rule, layer, Phase::kDecodeOnly, exact.data(), routing));
      if (!routed_experts) continue;
      for (int64_t t = 0; t < count; ++t)
        std::copy_n(ids.data() + t * k, k, routed_experts + ((offsets[s - 1] + t) * num_layers + l) * k);
    }
  }
  return sums;
}

}  // namespace lynx_rt
