// What families share when they say which tensors fill which slots: a table that grows.
#pragma once
#include <set>
#include <string>
#include <vector>

#include "model/family.h"

namespace lynx_rt {

// What the names of a checkpoint's tensors begin with.
struct ModelNames {
  explicit ModelNames(const Checkpoint& checkpoint);
  std::string root;  // of lm_head: "", or "language_model." where the model is a part of another
  std::string base;  // of what lies below the head: root + "model.", or "" in a checkpoint of the base model
  std::string head() const { return root + "lm_head.weight"; }
};

// Tensor names within an MLP.
struct MlpNames {
  const char *gate = "gate_proj", *up = "up_proj", *down = "down_proj";
};

class WeightTable {
 public:
  WeightTable(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights)
      : m(config), checkpoint_(checkpoint), weights_(weights), names_(checkpoint), checkpoint_bytes_(checkpoint.total_bytes()) {}

  // A tensor whose pieces fill weights that are placed as `placing` says. Throws kInternal for a piece whose target is none of them.
  void add(TensorSpec spec, const std::vector<Placing>& placing);
  // A tensor that fills one weight whole.
  void add(std::string name, std::vector<int64_t> shape, WeightView* target, WeightUse use) {
    add(whole_tensor(std::move(name), std::move(shape), target), {WeightSlot{target, use}});
  }
  // A vector that is made float32, whatever dtype the tensor has.
  void add_float32(std::string name, std::vector<int64_t> shape, WeightView* target) {
    TensorSpec spec = whole_tensor(std::move(name), std::move(shape), target);
    spec.pieces[0].dtype = DType::kF32;
    add(std::move(spec), {WeightSlot{target, WeightUse::kVector}});
  }
  // Whether the file is large enough for a weight of that shape, at four bits or more to an element; where it is not, a spec
  // without pieces reports what is missing, and nothing is made for each row of it. Always where there is no file.
  bool can_hold(const std::vector<int64_t>& shape) const;
  bool has(const std::string& name) const { return checkpoint_.has(name); }
  LayerWeights& layer(int64_t l) { return weights_.layers[size_t(l)]; }
  std::string layer_name(int64_t l) const { return names_.base + "layers." + std::to_string(l) + "."; }

  // model.embed_tokens, model.norm, lm_head. Where the config ties the last to the first, but the file has both and they differ,
  // both are used, as transformers does; where it has one of them, that one is both.
  void add_model();
  // input_layernorm and post_attention_layernorm.
  void add_norms(int64_t l);
  // self_attn.{q,k,v,o}_proj, with biases where the config has them, and q_norm, k_norm as ModelConfig::qk_norm says.
  void add_attention(int64_t l, const char* q_norm = "q_norm", const char* k_norm = "k_norm");
  // PREFIX{gate,up,down}.weight, and .bias.
  void add_mlp(const std::string& prefix, int64_t width, ExpertWeights& w, bool bias = false, const MlpNames& names = {}) {
    add_mlp(prefix, width, w, {&w, 1}, bias, names);
  }
  // All experts of a layer: PREFIX0.gate_proj.weight, ..., or fused: PREFIXgate_up_proj [E, 2I, H], PREFIXdown_proj [E, H, I].
  void add_experts(const std::string& prefix, int64_t l, const MlpNames& names = {});
  // One tensor [E, 2I, H] (gate rows first) and one [E, H, I].
  void add_fused_experts(const std::string& gate_up, const std::string& down, int64_t l);

  // mlp.{gate,up,down}_proj of a dense layer.
  void add_dense_mlp(int64_t l) { add_mlp(layer_name(l) + "mlp.", m.intermediate_size, layer(l).mlp, m.mlp_bias); }
  void add_router(std::string name, int64_t l) {
    add(std::move(name), {m.num_experts, m.hidden_size}, &layer(l).router, WeightUse::kRouter);
  }

  std::vector<TensorSpec> take() { return std::move(specs_); }

  const ModelConfig& m;

 private:
  void add_mlp(const std::string& prefix, int64_t width, ExpertWeights& w, std::span<ExpertWeights> placed_with, bool bias,
               const MlpNames& names);

  const Checkpoint& checkpoint_;
  ModelWeights& weights_;
  ModelNames names_;
  int64_t checkpoint_bytes_;
  std::vector<TensorSpec> specs_;
  std::set<const void*> placed_;  // where the entries of ModelWeights::placing begin
};

// Family::specs of dense models whose names are Llama's.
std::vector<TensorSpec> dense_specs(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights);

}  // namespace lynx_rt
