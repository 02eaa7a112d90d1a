#include "engine/memory_plan.h"

#include <algorithm>

#include "base/error.h"
#include "base/types.h"
#include "model/kv_cache.h"

namespace lynx_rt {

namespace {

constexpr int64_t kPageRecordBytes = 64;  // bookkeeping of a page, about; counted where the page holds no K and V

// Returns the largest value in [0, most] for which `fits`, which holds up to some value, or 0.
template <class Fits>
int64_t largest(int64_t most, Fits fits) {
  int64_t low = 0;
  while (low < most) {
    const int64_t middle = low + (most - low + 1) / 2;
    if (fits(middle))
      low = middle;
    else
      most = middle - 1;
  }
  return low;
}

}  // namespace

KvPages::KvPages(const ModelConfig& m, DType kv_dtype, const EngineOptions& o, int64_t max_num_seqs)
    : block_size_(o.block_size),
      step_blocks_(ceil_div(o.max_num_batched_tokens, o.block_size)),
      wanted_len_(std::min(o.max_model_len ? o.max_model_len : INT64_MAX, m.max_position_embeddings)),
      blocks_per_seq_(ceil_div(wanted_len_, o.block_size)),
      wanted_blocks_(checked_mul(blocks_per_seq_, max_num_seqs, "max_num_seqs")),
      wanted_windows_(max_num_seqs * (o.enable_prefix_caching ? 2 : 1)) {
  groups_ = page_groups(m, kv_dtype, wanted_len_);
  // A window begins and ends in the middle of pages, and the rows of a step in the middle of another.
  for (const PageGroup& group : groups_.groups) window_blocks_.push_back(ceil_div(group.span(wanted_len_), o.block_size) + 2);
}

int64_t KvPages::windows(int64_t blocks) const {
  if (blocks <= wanted_blocks_) return wanted_windows_;
  return int64_t(double(wanted_windows_) * (double(blocks) / double(wanted_blocks_)));
}

std::vector<int64_t> KvPages::num_blocks(int64_t blocks, int64_t windows) const {
  std::vector<int64_t> out{blocks};
  for (size_t g = 1; g < groups_.groups.size(); ++g)
    out.push_back(std::min(blocks, checked_mul(windows, window_blocks_[g], "max_num_seqs") + step_blocks_));
  return out;
}

int64_t KvPages::kv_bytes(const std::vector<int64_t>& num_blocks) const {
  int64_t sum = 0;
  for (size_t g = 0; g < num_blocks.size(); ++g)
    sum += checked_mul(num_blocks[g], groups_.groups[g].bytes_per_token * block_size_, "kv_cache_memory_bytes");
  return sum;
}

int64_t KvPages::bytes(int64_t blocks, int64_t windows) const {
  const int64_t records =
      groups_.groups[0].bytes_per_token == 0 ? checked_mul(blocks, kPageRecordBytes, "kv_cache_memory_bytes") : 0;
  return kv_bytes(num_blocks(blocks, windows)) + records;
}

int64_t KvPages::most_blocks(int64_t budget) const {
  const int64_t most = budget / std::max(groups_.groups[0].bytes_per_token * block_size_, kPageRecordBytes);
  return largest(std::min<int64_t>(most, INT32_MAX), [&](int64_t n) { return bytes(n, windows(n)) <= budget; });
}

int64_t KvPages::most_blocks(int64_t budget, int64_t windows) const {
  const int64_t most = budget / std::max(groups_.groups[0].bytes_per_token * block_size_, kPageRecordBytes);
  return largest(std::min<int64_t>(most, INT32_MAX), [&](int64_t n) { return bytes(n, windows) <= budget; });
}

int64_t KvPages::most_windows(int64_t budget, int64_t blocks) const {
  return largest(windows(blocks), [&](int64_t n) { return bytes(blocks, n) <= budget; });
}

MemoryPlan plan_memory(const ModelConfig& m, DType kv_dtype, const EngineOptions& o, Backend::MemoryBudget memory,
                       int64_t slot_bytes) {
  if (o.max_model_len > m.max_position_embeddings)
    invalid("max_model_len", "expected at most the model's max_position_embeddings = ", m.max_position_embeddings, ", got ",
            o.max_model_len, m.context_limit.empty() ? "" : str_cat(" (", m.context_limit, ")"));
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
    // States, which may be small, leave the pages that a request needs.
    const KvPages one(m, kv_dtype, o, 1);
    const int64_t needed = one.bytes(o.max_model_len ? one.blocks_per_seq() : 1, 1);
    const int64_t most = std::max<int64_t>(std::min(budget / 2, budget - needed) / slot_bytes, 1);
    plan.max_num_seqs = std::min(most, o.max_num_seqs);
    plan.num_state_slots = std::min(most, wanted_state_slots(o));
    if (plan.max_num_seqs < o.max_num_seqs)
      plan.warning =
          str_cat("max_num_seqs: ", plan.max_num_seqs, " instead of ", o.max_num_seqs, ", since the state of a sequence takes ",
                  slot_bytes, " bytes, and states get half of the ", budget, " bytes for states and KV cache; pass ",
                  "kv_cache_memory_bytes for more, or max_num_seqs=", plan.max_num_seqs);
    budget -= plan.num_state_slots * slot_bytes;
  }
  const KvPages pages(m, kv_dtype, o, plan.max_num_seqs);
  const int64_t per_seq = pages.blocks_per_seq();
  int64_t blocks = pages.most_blocks(budget);
  // More pages than max_num_seqs requests can use are taken only where the caller gave a size.
  if (!o.kv_cache_memory_bytes) blocks = std::min(blocks, pages.wanted_blocks());
  int64_t windows = pages.windows(blocks);
  if (o.max_model_len && blocks < per_seq && pages.bytes(per_seq, 1) <= budget) {
    // One request of the requested length comes before room for many short ones.
    blocks = per_seq;
    windows = pages.most_windows(budget, blocks);
  }
  if (blocks < 1 || (o.max_model_len && blocks < per_seq)) {
    const int64_t needed = pages.bytes(o.max_model_len ? per_seq : 1, 1), fitting = pages.most_blocks(budget, 1);
    fail(ErrorCode::kOutOfMemory, "kv_cache_memory_bytes", "kv_cache_memory_bytes: one request of ",
         o.max_model_len ? o.max_model_len : o.block_size, " tokens needs ", needed, " bytes of KV cache (",
         KvCache::bytes_per_block(m, kv_dtype, o.block_size), " per page of ", o.block_size, " tokens",
         pages.groups().groups.size() > 1 ? " in all layers, some of which keep a window alone), but " : "), but ", budget,
         " are ", o.kv_cache_memory_bytes ? "given" : "available (the part of the free memory that is taken unasked)",
         "; pass kv_cache_memory_bytes=", needed, " or more",
         fitting > 0 ? str_cat(", or max_model_len=", fitting * o.block_size, " or less") : "");
  }
  plan.num_blocks = blocks;
  plan.groups = pages.groups();
  plan.group_blocks = pages.num_blocks(blocks, windows);
  plan.kv_bytes = pages.kv_bytes(plan.group_blocks);
  plan.max_model_len = std::min(pages.wanted_len(), blocks * o.block_size);
  return plan;
}

}  // namespace lynx_rt
