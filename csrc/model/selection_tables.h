// From the text of an expert selection to what each MoE layer of a model does, with the tables that policies read.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/decoder.h"
#include "routing/selection_text.h"

namespace lynx_rt {

// Reads the table files (safetensors) that a selection names, each time that it is set: a file may have been written anew. The
// values go to where those of the same file were before, so that a recorded step that reads them there stays good. Tables by
// policy, for L MoE layers:
//   sere    "similarity" F32 [L, E, E]
//   alias   "alias" I32 [L, E], 0..E-1
//   replay  "routed_experts" I32 [N, L, k], 0..E-1, each once in a row, or -1: N rows of decode steps, one after the other
class SelectionTables {
 public:
  SelectionTables(Backend& backend, const ModelConfig& config) : backend_(backend), config_(config) {}

  // begin(), resolve() for each text of a selection, commit(): steps see the tables from commit() on, and where something throws
  // before it, they see the earlier ones.
  void begin();
  // Throws kInvalidArgument (field expert_selection) for a text that parse_selection() refuses or a parameter that does not fit
  // the model, and kNotFound, kCorruptFile for a table.
  LayerSelections resolve(const std::string& text);
  // Takes over the tables that were read since begin(); a recording starts at its first row.
  void commit();

  // For a step of `rows` rows in which some layer replays: the recorded ids [L, rows, k] of the next rows of the recording, which
  // starts again after its last row; null in other steps. Valid until the next call.
  const int32_t* next_replayed(const LayerSelections& selections, Phase phase, int64_t rows);

 private:
  template <class T>
  struct Table {
    DeviceArray<T> values;
    std::vector<T> read;  // since begin(); empty = nothing
  };
  const float* similarity(const std::string& file, int64_t moe_layer);
  const int32_t* alias(const std::string& file, int64_t moe_layer);
  void read_recording(const std::string& file);

  Backend& backend_;
  const ModelConfig& config_;
  std::map<std::string, Table<float>> similarities_;  // by file
  std::map<std::string, Table<int32_t>> aliases_;
  std::vector<int32_t> replay_, replay_read_;  // [N, L, k] in use; read since begin()
  int64_t replay_row_ = 0;
  std::vector<int32_t> replayed_;  // [L, T, k]
};

}  // namespace lynx_rt
