#include "model/families/common/qwen_vision.h"

#include <algorithm>

namespace lynx_rt {

namespace {

// Reads an integer, or a list of equal ones.
int64_t read_equal(const ConfigReader& c, const std::string& key, int64_t absent) {
  const std::vector<int64_t> values = c.integer_or_list(key, 1, 1 << 8);
  for (const int64_t v : values)
    if (v != values[0]) unsupported(c, key, str_cat(values[0], ", ", v), "equal sizes");
  return values.empty() ? absent : values[0];
}

double read_axial_theta(const ConfigReader& c) {
  const std::optional<ConfigReader> rope = c.object("rope_parameters");
  if (!rope) return 10000;
  const std::string kind = rope->string_or("rope_type", "axial");
  if (kind != "axial" && kind != "default") unsupported(*rope, "rope_type", quote(kind), "axial");
  return rope->number_or("rope_theta", 10000, 1, 1e12);
}

VisionConfig read_vision(const ConfigReader& c, const std::vector<int64_t>& deepstack) {
  VisionConfig v;
  for (const char* key : {"model_type", "dtype", "torch_dtype", "initializer_range"}) c.has(key);
  v.depth = c.integer_or("depth", 27, 1, kMaxLayers);
  v.hidden_size = c.integer_or("hidden_size", 1152, 1, 1 << 20);
  v.intermediate_size = c.integer_or("intermediate_size", 4304, 1, kMaxDim);
  v.num_heads = c.integer_or("num_heads", 16, 1, 1 << 16);
  if (v.hidden_size % v.num_heads != 0 || v.head_dim() % 4 != 0)
    c.fail_key("num_heads",
               str_cat("expected heads of a multiple of 4 columns, got ", v.num_heads, " for hidden_size ", v.hidden_size));
  v.in_channels = c.integer_or("in_channels", 3, 1, 1 << 8);
  v.patch_size = read_equal(c, "patch_size", 16);
  v.temporal_patch_size = read_equal(c, "temporal_patch_size", 2);
  v.merge_size = c.integer_or("spatial_merge_size", 2, 1, 16);
  v.num_positions = c.integer_or("num_position_embeddings", 2304, 1, kMaxDim);
  v.out_hidden_size = c.integer_or("out_hidden_size", 3584, 1, kMaxDim);
  require_word(c, "hidden_act", "gelu_pytorch_tanh");
  v.rope_theta = read_axial_theta(c);
  c.has("deepstack_visual_indexes");
  if (!deepstack.empty()) v.deepstack = c.integers_or("deepstack_visual_indexes", deepstack, 0, v.depth - 1);
  for (size_t i = 1; i < v.deepstack.size(); ++i)
    if (v.deepstack[i] <= v.deepstack[i - 1])
      unsupported(c, "deepstack_visual_indexes", str_cat(v.deepstack[i - 1], ", ", v.deepstack[i]), "rising numbers of blocks");
  return v;
}

}  // namespace

ModelConfig read_vision_language(const ConfigReader& c, ModelConfig (*read_text)(const ConfigReader& c), const VisionKeys& keys) {
  const std::optional<ConfigReader> part = c.object("text_config");
  if (!part) c.fail_key("text_config", "missing, expected an object");
  ModelConfig m = read_text(*part);
  m.model_type = c.string("model_type");
  if (!m.dtype_stated) read_dtype(c, m);
  if (m.quantization.empty()) m.quantization = read_quantization_config(c);
  // transformers writes another value into text_config than counts for the whole model.
  m.tie_word_embeddings = c.boolean_or("tie_word_embeddings", keys.tied.value_or(m.tie_word_embeddings));
  if (const std::optional<ConfigReader> vision = c.object("vision_config")) m.vision = read_vision(*vision, keys.deepstack);
  m.image_token_id = int32_t(c.integer_or("image_token_id", -1, -1, INT32_MAX));
  for (const char* key : {"video_token_id", "vision_start_token_id", "vision_end_token_id"}) c.has(key);
  return m;
}

void read_mrope(const ConfigReader& c, std::array<int64_t, 3> absent, ModelConfig& m) {
  m.mrope_section = absent;
  for (const char* rope : {"rope_scaling", "rope_parameters"})
    if (const std::optional<ConfigReader> r = c.object(rope)) {
      const std::vector<int64_t> sections = r->integers_or("mrope_section", {absent.begin(), absent.end()}, 0, 1 << 16);
      if (sections.size() != 3) r->fail_key("mrope_section", str_cat("expected three sizes, got ", sections.size()));
      std::copy_n(sections.begin(), 3, m.mrope_section.begin());
      require_flag(*r, "mrope_interleaved", true);
    }
}

namespace {

constexpr const char* kTower = "model.visual.";

// Adds NAME.weight and NAME.bias of a norm.
void add_norm(WeightTable& table, const std::string& name, int64_t size, WeightView& weight, WeightView& bias) {
  table.add(name + ".weight", {size}, &weight, WeightUse::kVector);
  table.add(name + ".bias", {size}, &bias, WeightUse::kVector);
}

// Adds NAME.weight [rows, columns] and NAME.bias.
void add_linear(WeightTable& table, const std::string& name, int64_t rows, int64_t columns, WeightView& weight,
                WeightView& bias) {
  table.add(name + ".weight", {rows, columns}, &weight, WeightUse::kMatrix);
  table.add(name + ".bias", {rows}, &bias, WeightUse::kVector);
}

// Adds PREFIXlinear_fc1 and PREFIXlinear_fc2.
void add_fcs(WeightTable& table, const std::string& prefix, int64_t in, int64_t width, int64_t out, ExpertWeights& w) {
  const std::vector<Placing> placing = {std::span(&w, 1)};
  const auto add = [&](const char* name, std::vector<int64_t> shape, WeightView* target) {
    table.add(whole_tensor(prefix + name, std::move(shape), target), placing);
  };
  add("linear_fc1.weight", {width, in}, &w.gate);
  add("linear_fc1.bias", {width}, &w.gate_bias);
  add("linear_fc2.weight", {out, width}, &w.down);
  add("linear_fc2.bias", {out}, &w.down_bias);
}

void add_merger(WeightTable& table, const std::string& name, const VisionConfig& v, int64_t normed, VisionMergerWeights& w) {
  add_norm(table, name + "norm", normed, w.norm, w.norm_bias);
  add_fcs(table, name, v.merged_columns(), v.merged_columns(), v.out_hidden_size, w.mlp);
}

}  // namespace

void add_vision_tower(WeightTable& table, const Checkpoint& checkpoint, ModelWeights& weights) {
  if (!table.m.vision) return;
  const auto is_of_tower = [](const auto& tensor) { return tensor.first.starts_with(kTower); };
  const auto& tensors = checkpoint.tensors();
  if (!checkpoint.files().empty() && std::none_of(tensors.begin(), tensors.end(), is_of_tower)) return;
  const VisionConfig& v = *table.m.vision;
  const std::string name = kTower;
  const int64_t h = v.hidden_size;
  VisionWeights& w = weights.vision.emplace();
  TensorSpec patch{name + "patch_embed.proj.weight",
                   {h, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size},
                   {{.target = &w.patch, .row_begin = 0, .rows = h}},
                   v.patch_columns()};
  table.add(std::move(patch), {WeightSlot{&w.patch, WeightUse::kMatrix}});
  table.add(name + "patch_embed.proj.bias", {h}, &w.patch_bias, WeightUse::kVector);
  table.add(name + "pos_embed.weight", {v.num_positions, h}, &w.positions, WeightUse::kVector);
  w.blocks.resize(size_t(v.depth));
  for (int64_t l = 0; l < v.depth; ++l) {
    const std::string block = str_cat(name, "blocks.", l, ".");
    VisionBlockWeights& b = w.blocks[size_t(l)];
    add_norm(table, block + "norm1", h, b.norm1, b.norm1_bias);
    add_linear(table, block + "attn.qkv", 3 * h, h, b.qkv, b.qkv_bias);
    add_linear(table, block + "attn.proj", h, h, b.proj, b.proj_bias);
    add_norm(table, block + "norm2", h, b.norm2, b.norm2_bias);
    add_fcs(table, block + "mlp.", h, v.intermediate_size, h, b.mlp);
  }
  add_merger(table, name + "merger.", v, h, w.merger);
  w.deepstack.resize(v.deepstack.size());
  for (size_t j = 0; j < v.deepstack.size(); ++j)
    add_merger(table, str_cat(name, "deepstack_merger_list.", j, "."), v, v.merged_columns(), w.deepstack[j]);
}

ModelConfig read_qwen3_vl_text(const ConfigReader& c) {
  c.has("model_type");
  ModelConfig m = read_common(c, {.rope_theta = 500000});
  read_mrope(c, {24, 20, 20}, m);
  m.qk_norm = QkNorm::kHead;
  m.attention_bias = m.output_bias = c.boolean_or("attention_bias", false);
  return m;
}

}  // namespace lynx_rt
