// gpt-oss (arXiv 2508.10925). Keys and names: transformers' gpt_oss configuration and the hub's checkpoints.
#include "model/families/common/config_keys.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

ModelConfig read_config(const ConfigReader& c) {
  ModelConfig m = read_common(c, {.rms_norm_eps = 1e-5, .rope_theta = 150000});
  if (!c.has("rope_parameters") && !c.has("rope_scaling"))
    c.fail_key("rope_scaling", "missing, as is rope_parameters; expected one of them");
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", true);
  m.sinks = true;
  read_window(c, m);
  if (!c.has("layer_types"))
    for (size_t l = 1; l < m.layers.size(); l += 2) m.layers[l].window = 0;  // sliding, full, sliding, ...
  read_experts(c, {{"num_local_experts", "num_experts"}, {"num_experts_per_tok", "experts_per_token"}, {"intermediate_size"}, 4},
               m);
  for (LayerConfig& l : m.layers) l.moe = true;
  m.router_bias = m.expert_bias = true;
  m.ffn.activation = Activation::kClampedSwiglu;
  m.ffn.alpha = float(c.number_or("swiglu_alpha", 1.702, 0.0, 1e6));
  m.ffn.limit = float(c.number_or("swiglu_limit", 7.0, 0.0, 1e6));
  return m;
}

// GGUF files have a tensor for each expert. Elsewhere gate and up alternate: in the rows of [E, 2I, H] where the tensor is quantised (MXFP4), else in the columns of [E, H, 2I].
void add_experts(WeightTable& table, const std::string& name, int64_t l) {
  const ModelConfig& m = table.m;
  const int64_t count = m.num_experts, hidden = m.hidden_size, width = m.moe_intermediate_size;
  if (table.has(name + "0.gate_proj.weight")) return table.add_experts(name, l);
  const std::string gate_up_name = name + "gate_up_proj", down_name = name + "down_proj";
  const bool rows = table.has(gate_up_name + "_blocks");
  std::vector<ExpertWeights>& experts = table.layer(l).experts;
  experts.resize(size_t(count));
  TensorSpec gate_up{gate_up_name, {count, rows ? 2 * width : hidden, rows ? hidden : 2 * width}, {}};
  TensorSpec down{down_name, {count, rows ? hidden : width, rows ? width : hidden}, {}};
  TensorSpec gate_up_bias{gate_up_name + "_bias", {count, 2 * width}, {}}, down_bias{down_name + "_bias", {count, hidden}, {}};
  for (int64_t e = 0; e < count; ++e) {
    ExpertWeights& w = experts[size_t(e)];
    for (int64_t up = 0; up < 2; ++up) {
      WeightView* target = up ? &w.up : &w.gate;
      if (rows) {
        gate_up.pieces.push_back({.target = target, .row_begin = e * 2 * width + up, .rows = width, .row_step = 2});
      } else {
        gate_up.pieces.push_back({.target = target,
                                  .row_begin = e * hidden,
                                  .rows = hidden,
                                  .col_begin = up,
                                  .cols = width,
                                  .col_step = 2,
                                  .transposed = true});
      }
      gate_up_bias.pieces.push_back(
          {.target = up ? &w.up_bias : &w.gate_bias, .row_begin = e, .rows = 1, .col_begin = up, .cols = width, .col_step = 2});
    }
    const int64_t down_rows = rows ? hidden : width;
    down.pieces.push_back({.target = &w.down, .row_begin = e * down_rows, .rows = down_rows, .transposed = !rows});
    down_bias.pieces.push_back({.target = &w.down_bias, .row_begin = e, .rows = 1});
  }
  for (TensorSpec* spec : {&gate_up, &gate_up_bias, &down, &down_bias}) table.add(std::move(*spec), {experts});
}

std::vector<TensorSpec> specs(const ModelConfig& m, const Checkpoint& checkpoint, ModelWeights& weights) {
  const MoeNames names{.router = "router.weight", .router_bias = "router.bias", .add_experts = add_experts};
  return decoder_specs({m, checkpoint, weights}, {names});
}

}  // namespace

const Family& gpt_oss_family() {
  static const Family family{"gpt_oss", read_config, specs, {}};
  return family;
}

}  // namespace lynx_rt
