// The table in which a family states which tensors fill which slots, with the entries that families share.
#pragma once
#include <set>
#include <string>
#include <vector>

#include "model/family.h"

namespace lynx_rt {

// The prefixes of a checkpoint's tensor names.
struct ModelNames {
  explicit ModelNames(const Checkpoint& checkpoint);
  std::string root;  // before lm_head: "", or "language_model." where the model is a part of another
  // Before all others: root + "model.", "model.language_model.", "backbone.", or "" in a checkpoint of the base model.
  std::string base;
  std::string head() const { return root + "lm_head.weight"; }
};

// Tensor names within an MLP. up is null where the activation is of one matrix alone, which `gate` names then.
struct MlpNames {
  const char *gate = "gate_proj", *up = "up_proj", *down = "down_proj";
};

class WeightTable;

// Names of the tensors of a layer's experts, after the layer's own name. The defaults are those of most families.
struct MoeNames {
  std::string block = "mlp.";  // prefix of the names below, and of a dense layer's MLP
  MlpNames mlp = {};           // of a dense layer's MLP and of the shared expert
  std::string router = "gate.weight";
  std::string router_bias = "gate.bias";                     // where ModelConfig::router_bias
  std::string choice_bias = "gate.e_score_correction_bias";  // where ModelConfig::choice_bias
  std::string experts = "experts.";
  MlpNames expert = {};
  std::string shared_expert = "shared_experts.";  // where there is one
  std::string shared_expert_gate = "shared_expert_gate.weight";
  // Adds the experts of layer `l`, whose tensor names begin with `prefix`; null means WeightTable::add_experts().
  void (*add_experts)(WeightTable& table, const std::string& prefix, int64_t l) = nullptr;
  // Adds the shared expert of layer `l`; null means WeightTable::add_mlp() under the names above.
  void (*add_shared_expert)(WeightTable& table, int64_t l) = nullptr;
};

class WeightTable {
 public:
  WeightTable(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights)
      : m(config), checkpoint_(checkpoint), weights_(weights), names_(checkpoint), checkpoint_bytes_(checkpoint.total_bytes()) {}

  // Adds a tensor whose pieces fill weights that are placed as `placing` says. Throws kInternal for a piece whose target is none
  // of them.
  void add(TensorSpec spec, const std::vector<Placing>& placing);
  // Adds a tensor that fills one weight whole.
  void add(std::string name, std::vector<int64_t> shape, WeightView* target, WeightUse use) {
    add(whole_tensor(std::move(name), std::move(shape), target), {WeightSlot{target, use}});
  }
  // Adds a vector that is converted to float32, whatever dtype the tensor has.
  void add_float32(std::string name, std::vector<int64_t> shape, WeightView* target) {
    TensorSpec spec = whole_tensor(std::move(name), std::move(shape), target);
    spec.pieces[0].dtype = DType::kF32;
    add(std::move(spec), {WeightSlot{target, WeightUse::kVector}});
  }
  // Returns whether the file is large enough for a weight of that shape, at four bits or more per element; always true where
  // there is no file. Where it is false, callers add a spec without pieces: the error then names the missing tensor, and no
  // memory is taken for each row of an absurd shape.
  bool can_hold(const std::vector<int64_t>& shape) const;
  bool has(const std::string& name) const { return checkpoint_.has(name); }
  bool has(const std::string& name, const std::vector<int64_t>& shape) const {
    return has(name) && checkpoint_.at(name).shape == shape;
  }
  LayerWeights& layer(int64_t l) { return weights_.layers[size_t(l)]; }
  std::string layer_name(int64_t l) const { return names_.base + "layers." + std::to_string(l) + "."; }

  // Adds the embedding, the final norm and lm_head. Where the config ties lm_head to the embedding, but the file has both and
  // they differ, both are used, as in transformers; where the file has one of them, it serves as both.
  void add_model();
  // Adds the weight of an RMSNorm, to which 1 is added where ModelConfig::norm_offset.
  void add_norm(std::string name, int64_t size, WeightView* target);
  // Adds the norms in front of the mixer and of the MLP, where the layer has them, or all that SandwichWeights holds.
  void add_norms(int64_t l);
  // Names of tensors, which a family may change: of the model, of a layer's norms, and of its attention, its norms and its output.
  const char *embed = "embed_tokens", *final_norm = "norm";
  const char *input_norm = "input_layernorm", *mlp_norm = "post_attention_layernorm";
  const char *attention = "self_attn.", *q_norm = "q_norm", *k_norm = "k_norm", *o_proj = "o_proj";
  // Adds q, k, v and output projections, with biases where the config has them, and q_norm, k_norm as ModelConfig::qk_norm says.
  void add_attention(int64_t l);
  // Adds self_attn.{q_proj or q_a_proj, q_a_layernorm, q_b_proj}, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj (or
  // k_b_proj, v_b_proj), o_proj.
  void add_latent_attention(int64_t l);
  // Adds linear_attn.{in_proj_qkv, in_proj_z, in_proj_b, in_proj_a (or in_proj_qkvz, in_proj_ba), conv1d, A_log, dt_bias, norm, out_proj}.
  void add_gated_delta(int64_t l);
  // Adds self_attn.{q,k,v,b}_proj, {q,k,v}_conv1d (or conv1d), f_a_proj, f_b_proj, A_log, dt_bias, g_a_proj, g_b_proj, o_norm, o_proj.
  void add_kda(int64_t l);
  // Adds mixer.{in_proj, conv1d, A_log, dt_bias, D, norm, out_proj}.
  void add_mamba2(int64_t l);
  // Adds conv.{in_proj, conv, out_proj}.
  void add_short_conv(int64_t l);
  // Adds PREFIX{gate,up,down}.weight, and .bias where `bias` is set.
  void add_mlp(const std::string& prefix, int64_t width, ExpertWeights& w, bool bias = false, const MlpNames& names = {}) {
    add_mlp(prefix, width, w, {&w, 1}, bias, names);
  }
  // Adds all experts of a layer: PREFIX0.gate_proj.weight, ..., and biases where ModelConfig::expert_bias; or, where they are fused,
  // PREFIXgate_up_proj [E, 2I, H] (without up the one matrix's name, [E, I, H]), PREFIXdown_proj [E, H, I].
  void add_experts(const std::string& prefix, int64_t l, const MlpNames& names = {});
  // Adds all experts of a layer from two tensors: gate_up [E, 2I, H] (gate rows first) and down [E, H, I].
  void add_fused_experts(const std::string& gate_up, const std::string& down, int64_t l);
  // Adds them from gate_up [E, H, 2I] (gate columns first) and down [E, I, H].
  void add_transposed_experts(const std::string& gate_up, const std::string& down, int64_t l);

  // Returns whether the checkpoint holds an MLP under that prefix.
  bool has_mlp(const std::string& prefix, const MlpNames& names) const;
  std::vector<TensorSpec> take() { return std::move(specs_); }

  const ModelConfig& m;

 private:
  void add_sandwich(int64_t l);
  // Adds a tensor of vh values, A_log, as -exp(A_log).
  void add_rate(std::string name, std::vector<int64_t> shape, WeightView* target);
  // Adds a convolution's weights [channels, 1, W], of which consecutive `columns` belong to each target, as [W, columns] in float32.
  void add_conv(std::string name, int64_t width, const std::vector<std::pair<WeightView*, int64_t>>& targets);
  void add_mlp(const std::string& prefix, int64_t width, ExpertWeights& w, std::span<ExpertWeights> placed_with, bool bias,
               const MlpNames& names);

  const Checkpoint& checkpoint_;
  ModelWeights& weights_;
  ModelNames names_;
  int64_t checkpoint_bytes_;
  std::vector<TensorSpec> specs_;
  std::set<const void*> placed_;  // where the entries of ModelWeights::placing begin
};

// Returns the specs of a decoder: embedding and head, and for each layer its norms, its mixer (LayerConfig::mixer), and its
// experts or dense MLP (LayerConfig::moe). `names` are alternatives: a layer takes the first whose router, or dense MLP, the checkpoint
// holds, else names[0].
std::vector<TensorSpec> decoder_specs(WeightTable table, const std::vector<MoeNames>& names);

// Family::specs for families that use MoeNames' default names, or have no experts.
std::vector<TensorSpec> usual_specs(const ModelConfig& config, const Checkpoint& checkpoint, ModelWeights& weights);

}  // namespace lynx_rt
