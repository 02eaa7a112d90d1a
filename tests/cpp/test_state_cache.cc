// Tests csrc/engine/state_cache.h, slots, their contents, and their memory; and csrc/engine/state_snapshots.h.
#include "engine/state_cache.h"

#include <cstring>
#include <random>

#include "check.h"
#include "engine/memory_plan.h"
#include "engine/state_snapshots.h"

using namespace lynx_rt;

namespace {

std::unique_ptr<Backend> cpu() { return make_backend({"cpu", DType::kF32, 1, ""}); }

void test_no_states() {
  const auto backend = cpu();
  for (const std::vector<int64_t>& layers : {std::vector<int64_t>{}, {0, 0, 0}}) {
    StateCache cache(*backend, layers, 5);
    CHECK(cache.empty());
    CHECK_EQ(cache.bytes(), 0);
    CHECK_EQ(cache.num_slots(), 0);
    CHECK_EQ(cache.allocate(), -1);
    cache.release(-1);
    cache.check_integrity({});
  }
}

void test_slots() {
  const auto backend = cpu();
  const std::vector<int64_t> layers = {100, 0, 64};
  CHECK_EQ(StateCache::slot_bytes(layers), 192);
  StateCache cache(*backend, layers, 3);
  CHECK(!cache.empty());
  CHECK_EQ(cache.bytes(), 3 * 192);
  CHECK(cache.state(1, 0) == nullptr);
  CHECK_EQ(cache.stride(0), 128);
  std::vector<int32_t> held;
  for (int i = 0; i < 3; ++i) held.push_back(cache.allocate());
  CHECK_EQ(held, (std::vector<int32_t>{0, 1, 2}));
  CHECK_EQ(cache.allocate(), -1);
  CHECK_EQ(cache.num_free(), 0);
  for (const int32_t slot : held)
    for (const int64_t layer : {0, 2}) {
      CHECK_EQ(reinterpret_cast<uintptr_t>(cache.state(layer, slot)) % 64, 0);
      std::memset(cache.state(layer, slot), 'a' + slot, size_t(layers[size_t(layer)]));
    }
  const auto first = [&](int64_t layer, int32_t slot) { return static_cast<const char*>(cache.state(layer, slot))[0]; };
  const auto last = [&](int64_t layer, int32_t slot) {
    return static_cast<const char*>(cache.state(layer, slot))[layers[size_t(layer)] - 1];
  };
  cache.copy(0, 2);
  for (const int64_t layer : {0, 2}) {
    CHECK_EQ(first(layer, 0), 'a');
    CHECK_EQ(last(layer, 1), 'b');
    CHECK_EQ(first(layer, 2), 'a');
    CHECK_EQ(last(layer, 2), 'a');
  }
  cache.check_integrity(held);
  cache.release(2);
  CHECK_EQ(cache.allocate(), 2);  // the slot is zeroed again
  CHECK_EQ(first(0, 2) + last(0, 2) + first(2, 2) + last(2, 2), 0);
  CHECK_EQ(first(0, 1), 'b');
  cache.release(1);
  CHECK_THROWS(cache.release(1), ErrorCode::kInternal, "state_cache", {"slot 1 is released twice"});
}

void test_integrity_finds_wrong_slots() {
  const auto backend = cpu();
  StateCache cache(*backend, std::vector<int64_t>{8}, 2);
  const int32_t slot = cache.allocate();
  cache.check_integrity(std::vector<int32_t>{slot});
  const auto check = [&](std::vector<int32_t> held) { cache.check_integrity(held); };
  CHECK_THROWS(check({}), ErrorCode::kInternal, "state_cache", {"slot 0 is held or free 0 times"});
  CHECK_THROWS(check({0, 0}), ErrorCode::kInternal, "state_cache", {"slot 0 is held or free 2 times"});
  CHECK_THROWS(check({0, 1}), ErrorCode::kInternal, "state_cache", {"slot 1 is held or free 2 times"});
  CHECK_THROWS(check({0, 7}), ErrorCode::kInternal, "state_cache", {"slot 7 of 2"});
}

void test_snapshots() {
  const auto backend = cpu();
  StateCache cache(*backend, std::vector<int64_t>{1}, 3);
  StateSnapshots snapshots(cache);
  const auto value = [&](int32_t slot) -> char& { return *static_cast<char*>(cache.state(0, slot)); };
  const int32_t first = snapshots.allocate();
  for (const ContentId content : {7, 8}) {
    value(first) = char(content);
    snapshots.keep(content, first);
  }
  value(first) = 9;
  CHECK_EQ(snapshots.longest_prefix({7, 8, 9}, 3), 2);
  CHECK_EQ(snapshots.longest_prefix({7, 8, 9}, 1), 1);
  CHECK_EQ(snapshots.longest_prefix({9}, 3), 0);
  CHECK_EQ(snapshots.longest_prefix({}, 3), 0);
  snapshots.keep(7, first);  // changes nothing but the order of use
  snapshots.keep(9, first);
  CHECK(snapshots.contains(7) && !snapshots.contains(8) && snapshots.contains(9));
  // The snapshot that is copied stays, though it was used longest ago.
  const int32_t second = snapshots.allocate(7);
  CHECK_EQ(int(value(second)), 7);
  CHECK(snapshots.contains(7) && !snapshots.contains(9));
  value(second) = 1;
  snapshots.restore(7, second);
  CHECK_EQ(int(value(second)), 7);
  // The last snapshot's slot goes to the request that asks for it.
  const int32_t third = snapshots.allocate(7);
  CHECK_EQ(int(value(third)), 7);
  CHECK_EQ(snapshots.size(), 0);
  CHECK_EQ(snapshots.allocate(), -1);
  snapshots.keep(7, third);  // no slot is left
  CHECK_EQ(snapshots.size(), 0);
  cache.check_integrity(std::vector<int32_t>{first, second, third});
  cache.release(second);
  snapshots.keep(7, third);
  CHECK_EQ(snapshots.held_states(), std::vector<int32_t>{second});
  const BlockPool pool(1, 4, true);
  CHECK_THROWS(snapshots.check_integrity(pool), ErrorCode::kInternal, "state_snapshots", {"content 7 has no page"});
  // A request that has no prefix takes the slot of any snapshot, and finds zeros.
  CHECK_EQ(snapshots.allocate(), second);
  CHECK_EQ(int(value(second)), 0);
  snapshots.drop(7);  // there is none any more
  snapshots.check_integrity(pool);
}

// States take memory from the budget of the pages, before the pages do.
void test_memory_plan() {
  ModelConfig config;
  config.num_layers = 2;
  config.layers.resize(2);
  config.num_kv_heads = 2;
  config.head_dim = config.v_head_dim = 8;
  config.max_position_embeddings = 1024;
  EngineOptions options;
  options.max_num_seqs = 4;
  options.block_size = 16;
  options.kv_cache_memory_bytes = 1 << 20;
  const Backend::MemoryBudget memory{int64_t(1) << 30, int64_t(1) << 30};
  const MemoryPlan without = plan_memory(config, DType::kF32, options, memory, 0);
  CHECK_EQ(without.num_state_slots, 0);
  CHECK_EQ(without.max_num_seqs, 4);
  const int64_t block_bytes = (1 << 20) / without.num_blocks;
  const MemoryPlan with = plan_memory(config, DType::kF32, options, memory, 10 * block_bytes);
  CHECK_EQ(with.num_state_slots, 8);  // of requests, and as many for snapshots
  CHECK_EQ(with.max_num_seqs, 4);
  CHECK_EQ(with.num_blocks, without.num_blocks - 80);
  CHECK(with.warning.empty());
  const MemoryPlan few = plan_memory(config, DType::kF32, options, memory, (1 << 20) / 12);
  CHECK_EQ(few.num_state_slots, 6);  // half of the memory has no room for more
  CHECK_EQ(few.max_num_seqs, 4);
  CHECK(few.warning.empty());
  options.enable_prefix_caching = false;
  CHECK_EQ(plan_memory(config, DType::kF32, options, memory, 10 * block_bytes).num_state_slots, 4);
  const MemoryPlan cut = plan_memory(config, DType::kF32, options, memory, 1 << 18);
  CHECK_EQ(cut.num_state_slots, 2);
  CHECK_EQ(cut.max_num_seqs, 2);
  CHECK(cut.warning.find("2 instead of 4, since the state of a sequence takes 262144 bytes") != std::string::npos);
  CHECK_THROWS(plan_memory(config, DType::kF32, options, memory, 1 << 21), ErrorCode::kOutOfMemory, "kv_cache_memory_bytes",
               {"the state of one sequence needs 2097152 bytes, but 1048576 are there", "kv_cache_memory_bytes=4194304 or more"});
}

// Layers with a window get as many pages as the others, or as the windows of all sequences need.
void test_memory_plan_of_windows() {
  ModelConfig config;
  config.num_layers = 4;
  config.layers.resize(4);
  config.layers[1].window = config.layers[2].window = 20;
  config.layers[2].num_kv_heads = 6;  // three times the bytes of the others
  config.num_kv_heads = 2;
  config.head_dim = config.v_head_dim = 8;
  config.max_position_embeddings = 1600;
  EngineOptions options;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 64;
  options.block_size = 16;
  options.enable_prefix_caching = false;
  const int64_t page = 16 * 2 * 2 * 8 * 4;  // of a layer
  const Backend::MemoryBudget memory{int64_t(1) << 30, int64_t(1) << 30};
  const auto plan = [&](int64_t pages) {
    options.kv_cache_memory_bytes = pages * page;
    return plan_memory(config, DType::kF32, options, memory, 0);
  };
  using Blocks = std::vector<int64_t>;
  CHECK_EQ(plan(6 * 10 + 5).group_blocks, (Blocks{10, 10}));
  // A window of 20 tokens is in four pages at most, with those where a step's rows begin and end; a step of 64 tokens in four more.
  CHECK_EQ(plan(2 * 50 + 4 * 20).group_blocks, (Blocks{50, 20}));
  CHECK_EQ(plan(2 * 50 + 4 * 20).max_model_len, 800);
  CHECK_EQ(plan(2 * 400 + 4 * 20).group_blocks, (Blocks{400, 20}));
  CHECK_EQ(plan(2 * 800 + 4 * 36).group_blocks, (Blocks{800, 36}));  // the prefix cache gets more of both
  options.enable_prefix_caching = true;
  CHECK_EQ(plan(2 * 50 + 4 * 36).group_blocks, (Blocks{50, 36}));
  CHECK_EQ(plan(2 * 50 + 4 * 36).kv_bytes, (2 * 50 + 4 * 36) * page);
  // One request of the given length comes before room for many short ones.
  options.max_model_len = 1600;
  CHECK_EQ(plan(2 * 100 + 4 * 9).group_blocks, (Blocks{100, 8}));
  CHECK_THROWS(plan(2 * 100 + 4 * 8 - 1), ErrorCode::kOutOfMemory, "kv_cache_memory_bytes",
               {"some of which keep a window alone", str_cat("kv_cache_memory_bytes=", (2 * 100 + 4 * 8) * page, " or more")});
  options.max_model_len = 0;
  options.kv_cache_memory_bytes = 0;  // room for all
  CHECK_EQ(plan_memory(config, DType::kF32, options, memory, 0).group_blocks, (Blocks{400, 36}));
  // Layers that all have the window leave the first group without memory; a window as long as the longest sequence is none.
  config.layers[0].window = config.layers[3].window = 20;
  const MemoryPlan all = plan_memory(config, DType::kF32, options, memory, 0);
  CHECK_EQ(all.group_blocks, (Blocks{400, 36}));
  CHECK_EQ(all.kv_bytes, 6 * 36 * page);
  options.max_model_len = 20;
  CHECK_EQ(plan_memory(config, DType::kF32, options, memory, 0).group_blocks, (Blocks{8}));
}

}  // namespace

int main() {
  test_no_states();
  test_slots();
  test_integrity_finds_wrong_slots();
  test_snapshots();
  test_memory_plan();
  test_memory_plan_of_windows();
  return check::result("test_state_cache");
}
