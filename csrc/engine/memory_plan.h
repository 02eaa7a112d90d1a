// Decides how much memory the KV cache gets, and checks that it is enough.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "lynx_rt/engine.h"
#include "model/model_config.h"
#include "model/sequence_memory.h"
#include "model/workspace.h"

namespace lynx_rt {

// Data of steps that a decoder keeps, and the most rows of one logits() call.
inline StepRecording step_recording(const EngineOptions& o) {
  return {o.enable_return_routed_experts || o.record_router_logits, o.record_router_logits};
}
inline int64_t max_logit_rows(const EngineOptions& o) { return std::min<int64_t>(o.max_num_seqs, 256); }

// Slots of the StateCache where there is room: one for each running request, and as many for snapshots of the prefix cache.
inline int64_t wanted_state_slots(const EngineOptions& o) { return o.max_num_seqs * (o.enable_prefix_caching ? 2 : 1); }

// Pages of the page groups for given numbers of sequences. The first group's pages and windows() of other groups are divided such that
// any sequences of that many tokens in all have room: a group with windows has as many pages as the first, or as the windows of all
// running requests need, with as many again for the prefix cache.
class KvPages {
 public:
  // Reads max_model_len, max_num_batched_tokens, block_size and enable_prefix_caching of the options.
  KvPages(const ModelConfig& config, DType kv_dtype, const EngineOptions& options, int64_t max_num_seqs);

  const PageGroups& groups() const { return groups_; }
  int64_t wanted_len() const { return wanted_len_; }          // tokens: EngineOptions::max_model_len, or the model's limit
  int64_t blocks_per_seq() const { return blocks_per_seq_; }  // first group's pages of a sequence of that length
  int64_t wanted_blocks() const { return wanted_blocks_; }    // and of max_num_seqs of them
  // Returns the number of sequences whose windows have room beside `blocks` pages of the first group; falls not with `blocks`.
  int64_t windows(int64_t blocks) const;
  // Returns the pages of each group, where the first one has `blocks`, and the windows of that many sequences have room in the others.
  std::vector<int64_t> num_blocks(int64_t blocks, int64_t windows) const;
  int64_t bytes(int64_t blocks, int64_t windows) const;  // which these pages take, with their records
  int64_t kv_bytes(const std::vector<int64_t>& num_blocks) const;
  // Return the most pages of the first group, or the most windows, that fit in `budget` bytes; 0 = not even one.
  int64_t most_blocks(int64_t budget) const;
  int64_t most_blocks(int64_t budget, int64_t windows) const;
  int64_t most_windows(int64_t budget, int64_t blocks) const;

 private:
  PageGroups groups_;
  int64_t block_size_, step_blocks_, wanted_len_, blocks_per_seq_, wanted_blocks_, wanted_windows_;
  std::vector<int64_t> window_blocks_;  // of each group: pages of a sequence between steps, and one for the rows of a step
};

struct MemoryPlan {
  int64_t num_blocks = 0;             // KV pages of the group that keeps all of a sequence
  PageGroups groups;                  // page groups of the model, and
  std::vector<int64_t> group_blocks;  // pages of each
  int64_t kv_bytes = 0;               // K and V of all pages
  int64_t max_model_len = 0;          // tokens
  int64_t max_num_seqs = 0;           // running requests: EngineOptions::max_num_seqs, or as many as have room for their states
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
