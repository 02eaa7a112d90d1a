// From the text of an expert selection to what each MoE layer of a model does, with the tables that policies read.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/decoder.h"

namespace lynx_rt {

// Reads a table file (safetensors) when it is first named, and keeps it: naming it again costs nothing, and a recorded step that
// uses it stays good. Tables by policy, for L MoE layers:
//   sere    "similarity" F32 [L, E, E]
//   alias   "alias" I32 [L, E], 0..E-1
//   replay  "routed_experts" I32 [N, L, k], 0..E-1, each once in a row, or -1: N rows of decode steps, one after the other
class SelectionTables {
 public:
  SelectionTables(Backend& backend, const ModelConfig& config) : backend_(backend), config_(config) {}

  // Throws kInvalidArgument (field expert_selection) for a text that parse_selection() refuses or a parameter that does not fit
  // the model, and kNotFound, kCorruptFile for a table.
  LayerSelections resolve(const std::string& text);

  // For a step of `rows` rows in which some layer replays: the recorded ids [L, rows, k] of the next rows of the recording, which
  // starts again after its last row; null in other steps. Valid until the next call.
  const int32_t* next_replayed(const LayerSelections& selections, Phase phase, int64_t rows);
  void rewind() { replay_row_ = 0; }

 private:
  const float* similarity(const std::string& file, int64_t moe_layer);
  const int32_t* alias(const std::string& file, int64_t moe_layer);
  void open_replay(const std::string& file);

  Backend& backend_;
  const ModelConfig& config_;
  std::map<std::string, DeviceArray<float>> similarities_;
  std::map<std::string, DeviceArray<int32_t>> aliases_;
  std::string replay_file_;
  std::vector<int32_t> replay_;  // [N, L, k]
  int64_t replay_row_ = 0;
  std::vector<int32_t> replayed_;  // [L, T, k]
};

}  // namespace lynx_rt
