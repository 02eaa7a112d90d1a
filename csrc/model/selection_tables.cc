#include "model/selection_tables.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace lynx_rt {

namespace {

constexpr const char* kField = "expert_selection";

// Reads the values of one tensor of a file, which must have the given type and shape; -1 in `shape` = any size.
template <class T>
std::vector<T> read_table(const std::string& file, const char* name, const char* dtype, std::vector<int64_t> shape) {
  if (file.empty()) invalid(kField, "expected file=PATH, a safetensors file with the table \"", name, "\"");
  const Checkpoint opened = Checkpoint::open(file);
  const TensorInfo& table = opened.at(name);
  if (table.shape.size() == shape.size())
    for (size_t i = 0; i < shape.size(); ++i)
      if (shape[i] < 0) shape[i] = table.shape[i];
  if (table.dtype != dtype || table.shape != shape)
    invalid(kField, file, ": ", name, ": expected ", dtype, " ", shape, ", got ", table.dtype, " ", table.shape);
  std::vector<T> values(size_t(table.bytes) / sizeof(T));
  std::memcpy(values.data(), table.data, values.size() * sizeof(T));
  return values;
}

void check_range(const std::string& file, const char* name, const std::vector<int32_t>& ids, int64_t least, int64_t end) {
  for (size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < least || ids[i] >= end)
      invalid(kField, file, ": ", name, "[", i, "]: expected ", least, "..", end - 1, ", got ", ids[i]);
}

}  // namespace

void SelectionTables::begin() {
  for (auto& [file, table] : similarities_) table.read.clear();
  for (auto& [file, table] : aliases_) table.read.clear();
  replay_read_.clear();
}

void SelectionTables::commit() {
  const auto write = [&](auto& tables) {
    for (auto& [file, table] : tables) {
      if (!table.read.empty())
        backend_.write(table.values.get(), table.read.data(), int64_t(table.read.size() * sizeof(table.read[0])));
      table.read = {};
    }
  };
  write(similarities_);
  write(aliases_);
  if (!replay_read_.empty()) replay_ = std::move(replay_read_);
  replay_read_ = {};
  replay_row_ = 0;
}

LayerSelections SelectionTables::resolve(const std::string& text) {
  const SelectionPlan plan = parse_selection(text, int(config_.num_experts_per_tok), kField);
  for (const SelectionPlan::Part& part : plan.parts) {
    if (config_.num_experts > 0)
      check_selection(part.selection, int(config_.num_experts), int(config_.num_experts_per_tok), kField);
    for (const auto& [first, last] : part.layers)
      if (last >= config_.num_layers) invalid(kField, "layers: expected 0..", config_.num_layers - 1, ", got ", last);
  }

  LayerSelections out;
  out.text = to_string(plan);
  const std::string* recording = nullptr;
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    if (!config_.layers[size_t(l)].moe) continue;
    const SelectionPlan::Part& part = plan.of_layer(int(l));
    const int64_t moe = int64_t(out.layers.size());
    out.layers.push_back(part.selection);
    Selection& s = out.layers.back();
    if (s.policy == Policy::kSere) s.similarity = similarity(part.file, moe);
    if (s.policy == Policy::kAlias) s.alias = alias(part.file, moe);
    if (s.policy != Policy::kReplay) continue;
    if (recording && *recording != part.file)
      invalid(kField, "replay: expected the same file in all layers, got ", *recording, " and ", part.file);
    recording = &part.file;
  }
  if (recording) read_recording(*recording);
  return out;
}

const float* SelectionTables::similarity(const std::string& file, int64_t moe_layer) {
  const int64_t experts = config_.num_experts, layers = config_.num_moe_layers();
  Table<float>& table = similarities_[file];
  if (table.read.empty()) {
    table.read = read_table<float>(file, "similarity", "F32", {layers, experts, experts});
    const auto bad = std::find_if(table.read.begin(), table.read.end(), [](float v) { return !std::isfinite(v); });
    if (bad != table.read.end())
      invalid(kField, file, ": similarity[", bad - table.read.begin(), "]: expected a finite number, got ", double(*bad));
    if (!table.values.get()) table.values = DeviceArray<float>(backend_, int64_t(table.read.size()), "selection tables");
  }
  return table.values.get() + moe_layer * experts * experts;
}

const int32_t* SelectionTables::alias(const std::string& file, int64_t moe_layer) {
  Table<int32_t>& table = aliases_[file];
  if (table.read.empty()) {
    table.read = read_table<int32_t>(file, "alias", "I32", {config_.num_moe_layers(), config_.num_experts});
    check_range(file, "alias", table.read, 0, config_.num_experts);
    if (!table.values.get()) table.values = DeviceArray<int32_t>(backend_, int64_t(table.read.size()), "selection tables");
  }
  return table.values.get() + moe_layer * config_.num_experts;
}

void SelectionTables::read_recording(const std::string& file) {
  const int64_t k = config_.num_experts_per_tok;
  auto ids = read_table<int32_t>(file, "routed_experts", "I32", {-1, config_.num_moe_layers(), k});
  check_range(file, "routed_experts", ids, -1, config_.num_experts);
  if (ids.empty()) invalid(kField, file, ": routed_experts: expected at least one row, got none");
  for (size_t row = 0; row < ids.size(); row += size_t(k))
    for (int64_t j = 0; j < k; ++j)
      for (int64_t i = 0; i < j; ++i)
        if (ids[row + size_t(i)] >= 0 && ids[row + size_t(i)] == ids[row + size_t(j)])
          invalid(kField, file, ": routed_experts[", row + size_t(j), "]: expected each expert once in a row, got ",
                  ids[row + size_t(j)], " again");
  replay_read_ = std::move(ids);
}

const int32_t* SelectionTables::next_replayed(const LayerSelections& selections, Phase phase, int64_t rows) {
  const auto replays = [&](const Selection& s) { return s.policy == Policy::kReplay && acts(s, phase, rows); };
  if (std::none_of(selections.layers.begin(), selections.layers.end(), replays)) return nullptr;
  const int64_t k = config_.num_experts_per_tok, layers = config_.num_moe_layers();
  const int64_t recorded = int64_t(replay_.size()) / (layers * k);
  replayed_.resize(size_t(layers * rows * k));
  for (int64_t t = 0; t < rows; ++t, replay_row_ = (replay_row_ + 1) % recorded)
    for (int64_t l = 0; l < layers; ++l)
      std::copy_n(replay_.data() + (replay_row_ * layers + l) * k, k, replayed_.data() + (l * rows + t) * k);
  return replayed_.data();
}

}  // namespace lynx_rt
