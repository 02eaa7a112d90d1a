#include "model/load_weights.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string_view>

#include "checkpoint/dummy.h"
#include "checkpoint/tensor_values.h"
#include "model/families/common/weight_table.h"

namespace lynx_rt {

namespace {

// Tensors that other classes of a model and older versions of transformers save beside the weights: heads of reward models and
// classifiers, and buffers that are computed.
const std::vector<std::string> kNotOfTheModel = {"v_head.*",
                                                 "value_head.*",
                                                 "score.*",
                                                 "classifier.*",
                                                 "*rotary_emb.inv_freq",
                                                 "*rotary_emb.original_inv_freq",
                                                 "*rotary_emb.cos_cached",
                                                 "*rotary_emb.sin_cached",
                                                 "*.masked_bias"};

// Returns the number of the layer that a tensor belongs to, -1 for none.
int64_t layer_of(const std::string& name, const std::string& layers) {
  int64_t l = -1;
  if (name.starts_with(layers)) std::from_chars(name.data() + layers.size(), name.data() + name.size(), l);
  return l;
}

// Returns the config with at most one layer more than the file has. That layer's tensors are then reported as missing, and an
// absurd number of layers takes no memory.
ModelConfig bounded(const ModelConfig& config, const Checkpoint& checkpoint, const std::string& layers) {
  std::set<int64_t> stored;
  for (const auto& [name, info] : checkpoint.tensors()) stored.insert(layer_of(name, layers));
  ModelConfig out = config;
  int64_t count = 0;
  while (count < config.num_layers && stored.count(count)) ++count;
  out.num_layers = std::min(config.num_layers, count + 1);
  out.layers.resize(size_t(out.num_layers));
  return out;
}

// Ignores the layers beyond num_hidden_layers: those that predict further tokens (MTP: DeepSeek-V3, GLM-4.5), and, with a
// warning, those that a smaller num_hidden_layers cuts off.
void ignore_further_layers(const ModelConfig& config, const Checkpoint& checkpoint, const std::string& layers,
                           std::vector<std::string>& ignored, std::vector<std::string>& warnings) {
  std::map<int64_t, bool> further;  // whether the layer predicts further tokens
  for (const auto& [name, info] : checkpoint.tensors()) {
    const int64_t l = layer_of(name, layers);
    if (l < config.num_layers) continue;
    const std::string_view part = std::string_view(name).substr(name.find('.', layers.size()) + 1);
    bool& predicts = further[l];
    for (const char* of_mtp : {"eh_proj.", "enorm.", "hnorm.", "shared_head.", "embed_tokens."})
      predicts |= part.starts_with(of_mtp);
  }
  int64_t cut = 0;
  for (const auto& [l, predicts] : further) {
    ignored.push_back(str_cat(layers, l, ".*"));
    cut += !predicts;
  }
  if (cut > 0)
    warnings.push_back(str_cat("the checkpoint has ", cut, " more layers than num_hidden_layers ", config.num_layers,
                               " in config.json: they are left out"));
}

// Gives weights that an op takes together one dtype: all gates and up projections of a layer's experts, and all their down
// projections.
class SameDtypes {
 public:
  SameDtypes(const Checkpoint& checkpoint, std::vector<TensorSpec>& specs, DType dtype) : dtype_(dtype) {
    std::vector<DType> of_spec(specs.size(), dtype);  // the dtype of decoded tensors
    for (size_t s = 0; s < specs.size(); ++s)
      if (checkpoint.has(specs[s].name)) of_spec[s] = floating_dtype(checkpoint.at(specs[s].name).dtype).value_or(dtype);
    if (std::set(of_spec.begin(), of_spec.end()).size() < 2) return;
    for (size_t s = 0; s < specs.size(); ++s)
      for (WeightPiece& piece : specs[s].pieces) pieces_[piece.target] = {&piece, piece.dtype.value_or(of_spec[s])};
  }

  // Makes all views the model's dtype where their dtypes differ: those that have another one are converted at load.
  void make(const std::vector<WeightView*>& together) {
    std::set<DType> dtypes;
    for (const WeightView* view : together)
      if (const auto it = pieces_.find(view); it != pieces_.end()) dtypes.insert(it->second.dtype);
    if (dtypes.size() < 2) return;
    for (const WeightView* view : together)
      if (const auto it = pieces_.find(view); it != pieces_.end()) it->second.piece->dtype = dtype_;
  }

 private:
  struct Source {
    WeightPiece* piece;
    DType dtype;
  };
  std::map<const WeightView*, Source> pieces_;
  DType dtype_;
};

void convert_mixed(const Checkpoint& checkpoint, DType dtype, std::vector<TensorSpec>& specs, const ModelWeights& weights) {
  SameDtypes same(checkpoint, specs, dtype);
  for (const Placing& placing : weights.placing) {
    const auto* experts = std::get_if<std::span<ExpertWeights>>(&placing);
    if (!experts) continue;
    std::vector<WeightView*> gates, downs;
    for (ExpertWeights& e : *experts) {
      gates.insert(gates.end(), {&e.gate, &e.up});
      downs.push_back(&e.down);
    }
    same.make(gates);
    same.make(downs);
  }
}

// Returns the uses of the weights that ops may take in blocks.
std::map<const WeightView*, WeightUse> uses_of_blocks(const ModelWeights& weights) {
  std::map<const WeightView*, WeightUse> uses;
  for (const Placing& placing : weights.placing) {
    if (const auto* slot = std::get_if<WeightSlot>(&placing)) {
      if (slot->use == WeightUse::kEmbed || slot->use == WeightUse::kMatrix || slot->use == WeightUse::kHead)
        uses[slot->view] = slot->use;
    } else if (const auto* experts = std::get_if<std::span<ExpertWeights>>(&placing)) {
      for (ExpertWeights& e : *experts)
        for (const WeightView* view : {&e.gate, &e.up, &e.down}) uses[view] = WeightUse::kExpert;
    }
  }
  return uses;
}

// An op takes gate and up of an expert together, where it has both.
BlockBinding allow_blocks(const ModelWeights& weights, const std::vector<TensorSpec>& specs, const TakesBlocks& takes) {
  BlockBinding out;
  out.takes = [uses = uses_of_blocks(weights), &takes](const WeightView* target, const BlockRows& rows) {
    const auto use = uses.find(target);
    return use != uses.end() && takes(use->second, rows);
  };
  std::set<const WeightView*> bound;
  for (const TensorSpec& spec : specs)
    for (const WeightPiece& piece : spec.pieces) bound.insert(piece.target);
  for (const Placing& placing : weights.placing)
    if (const auto* experts = std::get_if<std::span<ExpertWeights>>(&placing))
      for (const ExpertWeights& e : *experts)
        if (bound.count(&e.up) > 0) out.alike.emplace_back(&e.gate, &e.up);
  return out;
}

// A model without an output projection of its own uses its embedding.
void tie_output(ModelWeights& weights) {
  if (!weights.lm_head.empty()) return;
  weights.lm_head = weights.embed;
  weights.placing.push_back(WeightSlot{&weights.lm_head, WeightUse::kHead});
}

// Whether a text fits a pattern, in which '*' is any text.
bool fits(std::string_view text, std::string_view pattern) {
  size_t t = 0, p = 0, star = std::string_view::npos, from = 0;  // the last '*', and the text that it does not cover
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      from = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++t, ++p;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++from;
    } else {
      return false;
    }
  }
  return pattern.substr(p).find_first_not_of('*') == std::string_view::npos;
}

// Returns the pattern of an expression that has names, ".*" and "\d+" alone; nullopt for another one.
std::optional<std::string> pattern_of(std::string_view expression) {
  std::string out;
  while (!expression.empty()) {
    const auto take = [&](std::string_view part) {
      if (!expression.starts_with(part)) return false;
      expression.remove_prefix(part.size());
      return true;
    };
    if (take("^") || take("$")) continue;
    if (take(".*") || take("\\d+")) {
      out += '*';
    } else if (take("\\.")) {
      out += '.';
    } else if (std::isalnum(static_cast<unsigned char>(expression[0])) || expression[0] == '_' || expression[0] == '.') {
      out += expression[0];
      expression.remove_prefix(1);
    } else {
      return std::nullopt;
    }
  }
  return out;
}

// Whether an entry of a config's list names a module: its name or the end of it, or a module that holds it; or an expression.
bool names(const std::string& entry, const std::string& module) {
  if (entry.starts_with("re:")) {
    const auto pattern = pattern_of(std::string_view(entry).substr(3));
    return pattern && fits(module, *pattern);
  }
  const std::string at_end = "*." + entry;
  return fits(module, entry) || fits(module, entry + ".*") || fits(module, at_end) || fits(module, at_end + ".*");
}

// Whether a file with this config would have a weight quantised, as far as the config tells: modules of linear layers that it does not
// exclude; in gpt-oss's own format the experts.
bool quantizes(const QuantizationConfig& quantization, const std::string& weight, WeightUse use) {
  if (quantization.formats.empty() || (use != WeightUse::kMatrix && use != WeightUse::kExpert)) return false;
  if (quantization.formats[0].encoding == Encoding::kMxfp4Blocks && use != WeightUse::kExpert) return false;
  const std::string module = weight.ends_with(".weight") ? weight.substr(0, weight.size() - 7) : weight;
  return std::none_of(quantization.excluded.begin(), quantization.excluded.end(),
                      [&](const std::string& entry) { return names(entry, module); });
}

// Experts are compared by their choice biases, so a NaN would leave them without an order.
void check_choice_biases(ModelWeights& weights) {
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    const WeightView& bias = weights.layers[l].choice_bias;
    weights.copies.read(bias);
    for (int64_t e = 0; e < bias.cols; ++e)
      if (const float v = static_cast<const float*>(bias.data)[e]; !std::isfinite(v))
        fail(ErrorCode::kCorruptFile, "e_score_correction_bias", "e_score_correction_bias of layer ", l, ": expert ", e,
             ": expected a finite value, got ", double(v));
  }
}

}  // namespace

void load_weights(const ModelConfig& wanted, const Checkpoint& checkpoint, ModelWeights& weights, ReadCopies when,
                  const TakesBlocks& takes) {
  const Family& family = find_family(wanted.model_type);
  const ModelNames names(checkpoint);
  const ModelConfig config = bounded(wanted, checkpoint, names.base + "layers.");
  weights.layers.resize(size_t(config.num_layers));
  std::vector<TensorSpec> specs = family.specs(config, checkpoint, weights);
  convert_mixed(checkpoint, config.dtype, specs, weights);
  std::vector<std::string> ignored = kNotOfTheModel;
  ignored.insert(ignored.end(), family.ignored_tensors.begin(), family.ignored_tensors.end());
  if (!weights.vision) ignored.push_back("model.visual.*");
  if (config.tie_word_embeddings) ignored.push_back(names.head());  // some tied checkpoints store the head too
  ignore_further_layers(config, checkpoint, names.base + "layers.", ignored, weights.warnings);
  LoadNotes notes;
  BlockBinding binding = takes ? allow_blocks(weights, specs, takes) : BlockBinding();
  binding.check_scales = when != ReadCopies::kNever;
  weights.copies =
      bind_weights(checkpoint, specs, ignored, config.quantization, config.dtype, when == ReadCopies::kNow, &notes, binding);
  weights.warnings.insert(weights.warnings.end(), notes.warnings.begin(), notes.warnings.end());
  weights.not_used = std::move(notes.not_used);
  if (when != ReadCopies::kNever) check_choice_biases(weights);
  tie_output(weights);
}

void load_dummy_weights(const ModelConfig& config, bool shared, ModelWeights& weights, const TakesBlocks& takes) {
  weights.layers.resize(size_t(config.num_layers));
  const std::vector<TensorSpec> specs = find_family(config.model_type).specs(config, Checkpoint(), weights);
  DummyForm form;
  if (takes && !config.quantization.empty())
    form = [&, uses = uses_of_blocks(weights)](const TensorSpec& spec, const WeightView& target) -> std::optional<BlockRows> {
      const auto use = uses.find(&target);
      if (use == uses.end() || !quantizes(config.quantization, spec.name, use->second)) return std::nullopt;
      const auto rows = dummy_form(config.quantization.formats[0], target.cols, config.dtype);
      return rows && takes(use->second, *rows) ? rows : std::nullopt;
    };
  weights.owned = dummy_weights(specs, config.dtype, shared, form);
  tie_output(weights);
}

}  // namespace lynx_rt
