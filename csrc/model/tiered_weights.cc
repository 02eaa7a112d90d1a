#include "model/tiered_weights.h"

#include <map>

#include "base/error.h"

namespace lynx_rt {

void expect_experts_of(const ExpertFile& file, const ModelConfig& config, const ExpertSource& source) {
  const std::string& path = file.file()->path();
  const ExpertSource& found = file.source();
  const auto expect = [&](const char* what, const auto& expected, const auto& got) {
    if (expected != got) invalid("expert_file", "expected ", what, " ", expected, ", found ", got, " in ", path);
  };
  expect("experts of the model type", source.model_type, found.model_type);
  expect("experts of the quantization", source.quantization, found.quantization);
  if (source.fingerprint != found.fingerprint)
    invalid("expert_file", "expected the experts of this checkpoint, with the fingerprint ", source.fingerprint, ", found ",
            found.fingerprint, " in ", path, "; make it anew with lynx-rt pack");
  expect("layers:", config.num_layers, file.num_layers());
  for (int64_t l = 0; l < config.num_layers; ++l) {
    const int64_t experts = config.layers[size_t(l)].moe ? config.num_experts : 0;
    const std::string of = str_cat(" of layer ", l, ":");
    expect(("experts" + of).c_str(), experts, file.num_experts(l));
    if (experts == 0) continue;
    const WeightView& gate = file.layout(l, 0).shape().gate;
    expect(("rows of gate" + of).c_str(), config.moe_intermediate_size, gate.rows);
    expect(("columns of gate" + of).c_str(), config.hidden_size, gate.cols);
  }
}

void use_expert_file(const ExpertFile& file, const uint8_t* mapped, ModelWeights& weights) {
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    std::vector<ExpertWeights>& experts = weights.layers[l].experts;
    if (experts.empty()) continue;
    std::erase_if(weights.placing, [&](const Placing& placing) {
      const auto* together = std::get_if<std::span<ExpertWeights>>(&placing);
      return together && together->data() == experts.data();
    });
    for (size_t e = 0; e < experts.size(); ++e) {
      const RecordLayout& layout = file.layout(int64_t(l), int64_t(e));
      experts[e] = mapped ? layout.view(mapped + file.record(int64_t(l), int64_t(e)).offset) : layout.shape();
    }
  }
}

int64_t copy_to_memory(ModelWeights& weights, const std::function<bool(const void* data)>& is_mapped) {
  int64_t bytes = 0;
  std::map<const void*, WeightView> copies;  // a tied embedding is two weights of the same data
  const auto copy = [&](WeightView& v, WeightUse) {
    if (v.empty() || !is_mapped(v.data)) return;
    WeightView& made = copies[v.data];
    if (made.empty()) {
      ExpertWeights one;  // a record of one matrix
      one.gate = v;
      const RecordLayout layout(one);
      const OwnedPages& pages = weights.owned.emplace_back(own_pages(layout.bytes()));
      layout.write(one, pages.get());
      made = layout.view(pages.get()).gate;
      bytes += layout.bytes();
    }
    v = made;
  };
  for (const Placing& placing : weights.placing) visit_weights(placing, copy);
  return bytes;
}

}  // namespace lynx_rt
