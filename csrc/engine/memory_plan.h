// Decides how much memory the KV cache gets, and checks that it is enough.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "backend/backend.h"
#include "lynx_rt/engine.h"
#include "model/model_config.h"
#include "model/workspace.h"

namespace lynx_rt {

// Data of steps that a decoder keeps, and the most rows of one logits() call.
inline StepRecording step_recording(const EngineOptions& o) {
  return {o.enable_return_routed_experts || o.record_router_logits, o.record_router_logits};
}
inline int64_t max_logit_rows(const EngineOptions& o) { return std::min<int64_t>(o.max_num_seqs, 256); }

// Slots of the StateCache where there is room: one for each running request, and as many for snapshots of the prefix cache.
inline int64_t wanted_state_slots(const EngineOptions& o) { return o.max_num_seqs * (o.enable_prefix_caching ? 2 : 1); }

struct MemoryPlan {
  int64_t num_blocks = 0;     // KV pages
  int64_t max_model_len = 0;  // tokens
  int64_t max_num_seqs = 0;   // running requests: EngineOptions::max_num_seqs, or as many as have room for their states
  int64_t num_state_slots =
      0;                // of the StateCache: at least max_num_seqs, at most wanted_state_slots(); 0 where no layer has a state
  std::string warning;  // why max_num_seqs was cut; "" = it was not
};

// Divides EngineOptions::kv_cache_memory_bytes; 0 means room for max_num_seqs contexts, at most the backend's default share.
// max_model_len = 0 means the model's limit, cut to what the cache holds. `slot_bytes` is the size of a slot of the StateCache, 0
// where no layer has a state; slots get at most half of the same memory, and leave the pages of one request. Requests come before
// snapshots, and max_num_seqs is cut to the slots. Throws kOutOfMemory where the memory cannot hold one request of the requested
// max_model_len, saying what is needed, what there is, and which arguments would fit; and where more is requested than is free.
MemoryPlan plan_memory(const ModelConfig& config, DType kv_dtype, const EngineOptions& options, Backend::MemoryBudget memory,
                       int64_t slot_bytes);

}  // namespace lynx_rt
