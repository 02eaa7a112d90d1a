// Translates the text of an expert selection into the selection of each MoE layer, and loads the tables that policies read.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/decoder.h"
#include "routing/selection_text.h"

namespace lynx_rt {

// Reads the table files (safetensors) that a selection names each time it is set, since a file may have changed. A file's values
// keep their place in memory, so that a recorded step which reads them there stays valid. Tables by policy, for L MoE layers:
//   sere    "similarity" F32 [L, E, E]
//   alias   "alias" I32 [L, E], 0..E-1
//   replay  "routed_experts" I32 [N, L, k], 0..E-1, each once in a row, or -1: N rows of decode steps, one after the other
class SelectionTables {
 public:
  SelectionTables(Backend& backend, const ModelConfig& config) : backend_(backend), config_(config) {}

  // Begins a change of selection, which continues with resolve() for each text and ends with commit(). Steps see the new tables
  // from commit() on; if something throws before it, they see the earlier ones.
  void begin();
  // Throws kInvalidArgument (field expert_selection) for a text that parse_selection() refuses or a parameter that does not fit
  // the model, and kNotFound, kCorruptFile for a table.
  LayerSelections resolve(const std::string& text);
  // Makes the tables that were read since begin() the current ones; a recording starts at its first row.
  void commit();

  // Returns the recorded ids [L, rows, k] of the next rows of the recording, which starts again after its last row; null in steps
  // in which no layer replays. Valid until the next call.
  const int32_t* next_replayed(const LayerSelections& selections, Phase phase, int64_t rows);

 private:
  template <class T>
  struct Table {
    DeviceArray<T> values;
    std::vector<T> read;  // read since begin(); empty = nothing
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
