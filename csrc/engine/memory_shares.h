// The option `memory`: one number for everything that an engine needs, and how it is divided.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "lynx_rt/engine.h"
#include "model/model_config.h"

namespace lynx_rt {

// Returns the bytes that an option asks for: bytes ("8GB", "512MiB", "1000000"), a share of `all` ("25%"), or "auto", which is `chosen`.
// Throws kInvalidArgument with that field.
int64_t parse_memory(const std::string& field, const std::string& text, int64_t all, int64_t chosen);

// Returns EngineOptions::memory in bytes, where `free` bytes are free.
int64_t parse_total(const std::string& text, int64_t free);

// Demands that share the memory with the KV cache, in bytes.
struct MemoryDemand {
  int64_t weights = 0;                // all that are always in memory: without experts where these come from a file of their own
  int64_t steps = 0;                  // step_bytes(), and EncoderMemory
  int64_t state_slot = 0;             // as plan_memory() takes it
  int64_t slot = 0, num_experts = 0;  // of a file of experts: memory of one, and how many all layers have; 0 = no such file
  int64_t low = 0;                    // copies in low precision, which are needed where not all experts are in memory
};

struct MemoryShares {
  int64_t kv = 0;       // KV cache and states of sequences
  int64_t experts = 0;  // slot * num_experts: all stay in memory
};

// Returns an upper bound of the memory of a step: activations, logits and what the CPU's ops take.
int64_t step_bytes(Backend& backend, const ModelConfig& config, const EngineOptions& options);

// Divides `total` bytes. Weights and steps get what they need. The KV cache gets room for max_num_seqs contexts, but no more than half of
// the rest where experts could use it, and no less than one request of max_model_len needs. Experts get what is left. Options that say
// how much the KV cache or experts get (kv_cache_memory_bytes; expert_memory other than "auto") are followed. Throws kOutOfMemory (field
// memory) where that is more than there is, saying what would do.
MemoryShares divide_memory(int64_t total, const ModelConfig& config, DType kv_dtype, const EngineOptions& options,
                           const MemoryDemand& demand);

// The division of EngineOptions::memory by an engine on the CPU with experts in a file of their own and one value of `quantization`.
struct ForetoldMemory {
  std::string quantization;
  std::string error;  // why there would be no engine; empty = the rest holds
  MemoryDemand demand;
  MemoryShares shares;
  int64_t kv_bytes = 0, max_model_len = 0;

  // Returns how many experts there is memory for, in the precision of the file.
  int64_t num_slots() const {
    if (demand.slot == 0) return 0;
    return (shares.experts < demand.slot * demand.num_experts ? shares.experts - demand.low : shares.experts) / demand.slot;
  }
};
// Reads headers only. `total`: bytes of EngineOptions::memory; `options`: the sizes and expert_policy alone; device, dtype and quantization are
// not looked at. Throws the errors of describe_model().
std::vector<ForetoldMemory> foretell_memory(const std::string& path, int64_t total, const EngineOptions& options);

}  // namespace lynx_rt
