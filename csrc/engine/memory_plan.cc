#include "engine/memory_plan.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "base/types.h"
#include "model/decoder.h"

namespace lynx_rt {

namespace {

int64_t read_number(const char* path) {
  FILE* f = std::fopen(path, "r");
  if (!f) return -1;
  long long v = -1;
  int n = std::fscanf(f, "%lld", &v);
  std::fclose(f);
  return n == 1 ? v : -1;
}

// Bytes of the cgroup that are cached files: counted as used, but given back when memory is short. A mapped model is such.
int64_t cgroup_file_cache() {
  int64_t sum = 0;
  if (FILE* f = std::fopen("/sys/fs/cgroup/memory.stat", "r")) {
    char line[256];
    long long v;
    while (std::fgets(line, sizeof line, f))
      if (std::sscanf(line, "inactive_file %lld", &v) == 1 || std::sscanf(line, "active_file %lld", &v) == 1) sum += v;
    std::fclose(f);
  }
  return sum;
}

}  // namespace

int64_t free_memory_bytes() {
  int64_t available = int64_t(4) << 30;
  if (FILE* f = std::fopen("/proc/meminfo", "r")) {
    char line[256];
    long long kb;
    while (std::fgets(line, sizeof line, f))
      if (std::sscanf(line, "MemAvailable: %lld kB", &kb) == 1) available = kb * 1024;
    std::fclose(f);
  }
  int64_t limit = read_number("/sys/fs/cgroup/memory.max"), used = read_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) available = std::min(available, std::max<int64_t>(0, limit - used + cgroup_file_cache()));
  return available;
}

MemoryPlan plan_memory(const ModelConfig& m, DType kv_dtype, const EngineOptions& o, int64_t free_bytes) {
  if (o.max_model_len > m.max_position_embeddings)
    invalid("max_model_len", "expected at most the model's max_position_embeddings = ", m.max_position_embeddings, ", got ",
            o.max_model_len);
  int64_t block_bytes = KvCache::bytes_per_block(m, kv_dtype, o.block_size);
  int64_t wanted_len = o.max_model_len ? o.max_model_len : m.max_position_embeddings;
  int64_t blocks_per_seq = ceil_div(wanted_len, o.block_size);
  int64_t budget = o.kv_cache_memory_bytes ? o.kv_cache_memory_bytes : free_bytes / 2;
  if (budget > free_bytes)
    fail(ErrorCode::kOutOfMemory, "kv_cache_memory_bytes", "kv_cache_memory_bytes: ", budget, " bytes were asked for, but ",
         free_bytes, " bytes of memory are free; pass no more than that, or 0 to have it chosen");
  int64_t blocks = budget / block_bytes;
  int64_t wanted_blocks = checked_mul(blocks_per_seq, o.max_num_seqs, "max_num_seqs");
  // More than every running request can use is only worth having where it was asked for by size.
  if (!o.kv_cache_memory_bytes) blocks = std::min(blocks, wanted_blocks);
  blocks = std::min<int64_t>(blocks, INT32_MAX);
  if (blocks < 1 || (o.max_model_len && blocks < blocks_per_seq)) {
    int64_t needed = checked_mul(o.max_model_len ? blocks_per_seq : 1, block_bytes, "kv_cache_memory_bytes");
    fail(ErrorCode::kOutOfMemory, "kv_cache_memory_bytes", "kv_cache_memory_bytes: one request of ",
         o.max_model_len ? o.max_model_len : o.block_size, " tokens needs ", needed, " bytes of KV cache (", block_bytes,
         " per page of ", o.block_size, " tokens), but ", budget, " are ",
         o.kv_cache_memory_bytes ? "given" : "available (half of the free memory)", "; pass kv_cache_memory_bytes=", needed,
         " or more, or max_model_len=", blocks * o.block_size, " or less");
  }
  int64_t len = std::min(wanted_len, blocks * o.block_size);
  return {blocks, len};
}

}  // namespace lynx_rt
