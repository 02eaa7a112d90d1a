#include "engine/memory_plan.h"

#include <algorithm>

#include "base/error.h"
#include "base/types.h"
#include "model/kv_cache.h"

namespace lynx_rt {

MemoryPlan plan_memory(const ModelConfig& m, DType kv_dtype, const EngineOptions& o, Backend::MemoryBudget memory,
                       int64_t slot_bytes) {
  if (o.max_model_len > m.max_position_embeddings)
    invalid("max_model_len", "expected at most the model's max_position_embeddings = ", m.max_position_embeddings, ", got ",
            o.max_model_len, m.context_limit.empty() ? "" : str_cat(" (", m.context_limit, ")"));
  int64_t block_bytes = KvCache::bytes_per_block(m, kv_dtype, o.block_size);
  int64_t wanted_len = o.max_model_len ? o.max_model_len : m.max_position_embeddings;
  int64_t blocks_per_seq = ceil_div(wanted_len, o.block_size);
  int64_t budget = o.kv_cache_memory_bytes ? o.kv_cache_memory_bytes : memory.chosen;
  if (budget > memory.free)
    fail(ErrorCode::kOutOfMemory, "kv_cache_memory_bytes", "kv_cache_memory_bytes: ", budget, " bytes were asked for, but ",
         memory.free, " bytes of memory are free; pass no more than that, or 0 to have it chosen");
  MemoryPlan plan;
  plan.max_num_seqs = o.max_num_seqs;
  if (slot_bytes > 0) {
    if (slot_bytes > budget)
      fail(ErrorCode::kOutOfMemory, "kv_cache_memory_bytes", "kv_cache_memory_bytes: the state of one sequence needs ",
           slot_bytes, " bytes, but ", budget, " are there for states and KV cache; pass kv_cache_memory_bytes=", 2 * slot_bytes,
           " or more");
    const int64_t most = std::max<int64_t>(budget / 2 / slot_bytes, 1);
    plan.max_num_seqs = std::min(most, o.max_num_seqs);
    plan.num_state_slots = std::min(most, wanted_state_slots(o));
    if (plan.max_num_seqs < o.max_num_seqs)
      plan.warning =
          str_cat("max_num_seqs: ", plan.max_num_seqs, " instead of ", o.max_num_seqs, ", since the state of a sequence takes ",
                  slot_bytes, " bytes, and states get half of the ", budget, " bytes for states and KV cache; pass ",
                  "kv_cache_memory_bytes for more, or max_num_seqs=", plan.max_num_seqs);
    budget -= plan.num_state_slots * slot_bytes;
  }
  int64_t blocks = budget / block_bytes;
  int64_t wanted_blocks = checked_mul(blocks_per_seq, plan.max_num_seqs, "max_num_seqs");
  // More pages than max_num_seqs requests can use are taken only where the caller gave a size.
  if (!o.kv_cache_memory_bytes) blocks = std::min(blocks, wanted_blocks);
  blocks = std::min<int64_t>(blocks, INT32_MAX);
  if (blocks < 1 || (o.max_model_len && blocks < blocks_per_seq)) {
    int64_t needed = checked_mul(o.max_model_len ? blocks_per_seq : 1, block_bytes, "kv_cache_memory_bytes");
    fail(ErrorCode::kOutOfMemory, "kv_cache_memory_bytes", "kv_cache_memory_bytes: one request of ",
         o.max_model_len ? o.max_model_len : o.block_size, " tokens needs ", needed, " bytes of KV cache (", block_bytes,
         " per page of ", o.block_size, " tokens), but ", budget, " are ",
         o.kv_cache_memory_bytes ? "given" : "available (the part of the free memory that is taken unasked)",
         "; pass kv_cache_memory_bytes=", needed, " or more",
         blocks > 0 ? str_cat(", or max_model_len=", blocks * o.block_size, " or less") : "");
  }
  plan.num_blocks = blocks;
  plan.max_model_len = std::min(wanted_len, blocks * o.block_size);
  return plan;
}

}  // namespace lynx_rt
