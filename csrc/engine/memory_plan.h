// How much KV cache an engine gets, and whether that is enough.
#pragma once
#include <cstdint>

#include "backend/backend.h"
#include "lynx_rt/engine.h"
#include "model/model_config.h"

namespace lynx_rt {

struct MemoryPlan {
  int64_t num_blocks;           // KV pages
  int64_t max_model_len;        // tokens
  int64_t num_state_slots = 0;  // of the StateCache: the state of each running request, and a snapshot of it
};

// Divides the memory that EngineOptions::kv_cache_memory_bytes gives; 0 = room for max_num_seqs contexts, at most what the
// backend gives unasked. max_model_len = 0 is the model's, cut to what the cache holds. slot_bytes: of a slot of the StateCache,
// 0 where no layer has a state; slots come out of the same memory, before pages. Throws kOutOfMemory where the cache cannot hold
// one request of the max_model_len that was asked for, with what is needed, what there is, and which arguments would fit; or
// where more was asked for than is free.
MemoryPlan plan_memory(const ModelConfig& config, DType kv_dtype, const EngineOptions& options, Backend::MemoryBudget memory,
                       int64_t slot_bytes);

}  // namespace lynx_rt
