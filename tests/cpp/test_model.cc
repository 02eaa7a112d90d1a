// Tests the statements of model families: how each weight is placed, and the memory that a layer keeps for a sequence.
// Usage: test_model MODEL_FOLDER FOLDER_OF_MODEL_FOLDERS (only config.json is read; weights are made up)
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "check.h"
#include "checkpoint/dummy.h"
#include "model/families/common/weight_table.h"
#include "model/family.h"
#include "model/kv_cache.h"
#include "model/load_weights.h"
#include "model/sequence_memory.h"

using namespace lynx_rt;

namespace {

// Leaves weights where they are and records how each was placed.
class NotingBackend : public CpuBackend {
 public:
  NotingBackend() : CpuBackend({"cpu", DType::kF32, 1, ""}) {}

  WeightView place(const WeightView& view, WeightUse use) override {
    note(view, use == WeightUse::kVector ? "vector" : "matrix");
    return view;
  }
  void place_experts(std::span<ExpertWeights> experts) override {
    for (const ExpertWeights& e : experts)
      for (const WeightView* view : {&e.gate, &e.up, &e.down, &e.gate_bias, &e.up_bias, &e.down_bias}) note(*view, "expert");
  }
  void place_heads(std::span<WeightView> heads) override {
    for (const WeightView& view : heads) note(view, "head");
  }

  std::map<const void*, std::vector<std::string>> placed;  // by the data pointer of a view

 private:
  void note(const WeightView& view, const char* how) {
    if (!view.empty()) placed[view.data].push_back(how);
  }
};

void test_every_weight_is_placed_once(const std::string& folder) {
  const ModelConfig config = read_model_config(folder);
  ModelWeights weights;
  weights.layers.resize(size_t(config.num_layers));
  const std::vector<TensorSpec> specs = find_family(config.model_type).specs(config, Checkpoint(), weights);
  weights.owned = dummy_weights(specs, config.dtype, false);
  NotingBackend backend;
  int64_t total = 0, reported = 0;
  place_weights(backend, weights, [&](int64_t done, int64_t) { reported = done; });
  size_t targets = 0;
  for (const TensorSpec& spec : specs)
    for (const WeightPiece& piece : spec.pieces) {
      const std::vector<std::string>& how = backend.placed[piece.target->data];
      CHECK_EQ(how.size(), 1);
      CHECK(how.size() == 1 && (spec.shape.size() > 1 || how[0] == "vector" || how[0] == "expert"));
      total += piece.target->bytes();
      ++targets;
    }
  CHECK_EQ(backend.placed.size(), targets);
  CHECK_EQ(weight_bytes(weights), total);
  CHECK_EQ(reported, total);
}

void test_a_forgotten_weight_is_refused(const std::string& folder) {
  const ModelConfig config = read_model_config(folder);
  const Checkpoint none;
  ModelWeights weights;
  weights.layers.resize(size_t(config.num_layers));
  WeightTable table(config, none, weights);
  std::vector<ExpertWeights>& experts = table.layer(0).experts;
  experts.resize(2);
  ExpertWeights other;
  const auto spec = [](WeightView* target) { return whole_tensor("w", {2, 2}, target); };
  CHECK_THROWS(table.add(spec(&weights.embed), {}), ErrorCode::kInternal, "w", {"target is not placed"});
  CHECK_THROWS(table.add(spec(&weights.embed), {WeightSlot{&weights.lm_head, WeightUse::kHead}}), ErrorCode::kInternal, "w",
               {"target is not placed"});
  CHECK_THROWS(table.add(spec(&other.up), {experts}), ErrorCode::kInternal, "w", {"target is not placed"});
  CHECK(weights.placing.empty());
  table.add(spec(&experts[1].down_bias), {experts});
  table.add(spec(&experts[0].gate), {experts});
  CHECK_EQ(weights.placing.size(), 1);  // both experts in one call
}

void test_layers_keep_pages_or_states(const std::string& folder) {
  const ModelConfig config = read_model_config(folder);
  int64_t bytes = 0;
  for (int64_t l = 0; l < config.num_layers; ++l) {
    const SequenceMemory memory = sequence_memory(config, l, DType::kBF16);
    const MixerKind mixer = config.layers[size_t(l)].mixer;
    const bool is_state = mixer != MixerKind::kGqa && mixer != MixerKind::kMla;
    CHECK(memory.kind == (is_state ? SequenceMemory::kState : SequenceMemory::kPages));
    CHECK_EQ(memory.bytes > 0, mixer != MixerKind::kNone);
    CHECK_EQ(state_bytes(config, DType::kBF16)[size_t(l)], is_state ? memory.bytes : 0);
    if (!is_state) bytes += memory.bytes;
  }
  CHECK_EQ(KvCache::bytes_per_block(config, DType::kBF16, 16), 16 * bytes);
  NotingBackend backend;
  const KvCache cache(backend, config, 3, 16);
  CHECK_EQ(cache.bytes(), 3 * KvCache::bytes_per_block(config, DType::kF32, 16));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::vector<std::string> folders = {argv[1]};
  for (const auto& entry : std::filesystem::directory_iterator(argv[2])) folders.push_back(entry.path().string());
  CHECK(folders.size() > 5);
  for (const std::string& folder : folders) {
    test_every_weight_is_placed_once(folder);
    test_layers_keep_pages_or_states(folder);
  }
  test_a_forgotten_weight_is_refused(argv[1]);
  return check::result("test_model");
}
