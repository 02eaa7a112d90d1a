// The engine with experts that do not fit the device's memory: with every policy, budget and speed of copies its answers have the bits of an
// engine with all experts on the device, and what it counts is what routing alone says.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/types.h"
#include "engine_case.h"
#ifdef LYNX_RT_EMULATED
#include "simt.h"
#endif
#include "temp_folder.h"
#include "tiers/residency.h"

namespace engine_case {

namespace {

EngineOptions tiered(const std::string& memory, const std::string& policy) {
  EngineOptions o = options("cuda");
  o.expert_memory = memory;
  o.expert_policy = policy;
  return o;
}

void set_copy_lag([[maybe_unused]] int lag) {
#ifdef LYNX_RT_EMULATED
  simt::copy_lag = lag;
#endif
}

std::vector<Ask> asks_of(int64_t vocab, int count) {
  SamplingParams params = greedy();
  params.logprobs = 0;
  return batch(vocab, count, params);
}

int64_t sum(const EngineStats& stats, int64_t EngineStats::Layer::* count) {
  int64_t total = 0;
  for (const EngineStats::Layer& l : stats.layers) total += l.*count;
  return total;
}

struct Expected {
  std::vector<Ask> asks;
  std::vector<Answer> answers;
};

// Returns the counters, after a check that the answers are the expected ones.
EngineStats::Tier check_answers(Engine& engine, const Expected& expected) {
  CHECK(generate(engine, expected.asks) == expected.answers);
  engine.reset_stats();
  CHECK(generate(engine, expected.asks) == expected.answers);  // recorded steps are replayed, and residents are others
  const EngineStats stats = engine.stats();
  const EngineStats::Tier& tier = stats.tier;
  CHECK_EQ(tier.decode_hits + tier.decode_misses, sum(stats, &EngineStats::Layer::active));
  CHECK_EQ(tier.decode_misses, sum(stats, &EngineStats::Layer::misses));  // counted on the device, by the costs that are there
  CHECK(tier.hits >= tier.decode_hits && tier.misses >= tier.decode_misses);
  CHECK(tier.late <= tier.hits);
  CHECK(tier.resident <= tier.slots);
  CHECK(tier.bytes_read >= tier.misses * (tier.slot_bytes - 256 * 2));
  return tier;
}

// large: of a model that takes long, with fewer policies and lags.
void test_policies_and_lags(const Expected& expected, const std::string& list, bool large) {
  std::vector<std::string> policies = {"lfu:decay=0.9", "static:file=" + list};
  if (!large) policies.insert(policies.end(), {"lru", "lfru", "random:seed=3", "none"});
  const std::vector<int> lags = large ? std::vector<int>{0, 2} : std::vector<int>{0, 1, 7, 1 << 30};
  for (const std::string memory : {large ? "10%" : "12%", "25%", "50%"})  // 12 % of the small model are two experts, the least
    for (const std::string& policy : policies) {
      const int failures_before = check::failures;
      std::vector<EngineStats::Tier> counted;
      for (const int lag : lags) {
        set_copy_lag(lag);
        counted.push_back(check_answers(*Engine::create(model, tiered(memory, policy)), expected));
        const EngineStats::Tier &first = counted[0], &last = counted.back();
        CHECK_EQ(last.hits, first.hits);
        CHECK_EQ(last.misses, first.misses);
        CHECK_EQ(last.resident, first.resident);
        CHECK_EQ(last.bytes_read > 0, true);
        CHECK(last.late >= first.late);
        CHECK_EQ(last.resident == 0, policy == "none");
        if (policy == "none") CHECK_EQ(last.hits, 0);
#ifdef LYNX_RT_EMULATED
        if (lag == 1 << 30 && !policy.starts_with("static")) CHECK_EQ(last.late, last.hits);  // nothing ever arrives
        if (policy.starts_with("static")) CHECK_EQ(last.late, 0);                             // all were there at the start
#endif
      }
      if (check::failures != failures_before) std::cerr << "  with " << memory << ", " << policy << "\n";
    }
  set_copy_lag(0);
}

// One request at a time, whose experts are known step by step: hits and misses are those of Residency on them.
void test_counts(const std::string& policy) {
  EngineOptions o = tiered("50%", policy);
  o.enable_return_routed_experts = true;
  auto engine = Engine::create(model, o);
  const ModelInfo info = engine->model_info();
  const int64_t layers = info.num_moe_layers, k = info.num_experts_per_tok;
  Residency residency(parse_residency(policy), uniform_quota(engine->stats().tier.slots, layers, info.num_experts),
                      info.num_experts);
  int64_t hits = 0, misses = 0;
  for (int i = 0; i < 3; ++i) {
    const std::vector<int32_t> ids = prompt(i, info.vocab_size, 5 + 4 * i);
    engine->add_request(ids, greedy());
    std::vector<int16_t> routed;  // [rows, layers, k]
    while (engine->has_unfinished())
      for (const StepOutput& out : engine->step())
        routed.insert(routed.end(), out.routed_experts.ids.begin(), out.routed_experts.ids.end());
    const int64_t rows = int64_t(routed.size()) / (layers * k);
    for (int64_t row = int64_t(ids.size()); row < rows; ++row)
      for (int64_t l = 0; l < layers; ++l) {
        std::vector<int32_t> used;
        for (int64_t j = 0; j < k; ++j) used.push_back(routed[size_t((row * layers + l) * k + j)]);
        std::sort(used.begin(), used.end());
        for (const int32_t e : used) ++(residency.cost(l)[size_t(e)] == 0 ? hits : misses);
        residency.update(l, used);
      }
  }
  CHECK(hits > 0 && misses > 0);
  CHECK_EQ(engine->stats().tier.decode_hits, hits);
  CHECK_EQ(engine->stats().tier.decode_misses, misses);
}

// Selection prefers residents as the CPU does with a cache that is only counted, whatever the speed of copies.
void test_resident_selection() {
  EngineOptions own = options("cpu");
  own.enable_mixed_chunk = false;
  own.virtual_residency = "lfu";
  auto engine = Engine::create(model, tiered("50%", "lfu"));
  const ModelInfo info = engine->model_info();
  const int64_t layers = info.num_moe_layers;
  const EngineStats::Tier half = engine->stats().tier;
  own.virtual_residents = double(half.slots / layers);
  const int64_t bytes = half.slots / layers * layers * half.slot_bytes;
  std::vector<Ask> asks = asks_of(info.vocab_size, 5);
  for (size_t i = 0; i < asks.size(); ++i) asks[i].params.allowed_token_ids = {int32_t(3 + 11 * i)};  // the same rows everywhere
  int64_t topk_misses = 0;
  for (const std::string selection : {"topk", "topk:resident=1", "cover:resident=2", "oea:k0=1,resident=0.5"}) {
    std::vector<std::vector<Answer>> answers;
    std::vector<int64_t> misses, before;
    for (const int lag : {0, 3, 1 << 30, -1}) {  // -1: the CPU
      set_copy_lag(std::max(lag, 0));
      auto one = Engine::create(model, lag < 0 ? own : tiered(std::to_string(bytes), "lfu"));
      one->set_expert_selection(selection);
      answers.push_back(generate(*one, asks));
      answers.push_back(generate(*one, asks));
      misses.push_back(sum(one->stats(), &EngineStats::Layer::misses));
      before.push_back(sum(one->stats(), &EngineStats::Layer::misses_before));
      if (lag > 0) {
        CHECK(answers.end()[-1] == answers[1] && answers.end()[-2] == answers[0]);
        CHECK_EQ(misses.back(), misses[0]);
        CHECK_EQ(before.back(), before[0]);
      }
    }
    set_copy_lag(0);
    if (selection == "topk")
      topk_misses = misses[0];
    else
      CHECK(misses[0] < before[0] && misses[0] < topk_misses);
    // Scores as close as the rounding may change an expert, and with it what is resident later.
    for (const auto& [got, want] : {std::pair(misses[0], misses[3]), std::pair(before[0], before[3])})
      CHECK(10 * std::abs(got - want) <= want);
  }
  CHECK(topk_misses > 0);
}

void test_memory(const EngineStats::Tier& half, int64_t weight_bytes) {
  const int64_t bytes = half.slots * half.slot_bytes;
  auto engine = Engine::create(model, tiered(std::to_string(bytes), "lfu"));
  CHECK_EQ(engine->stats().tier.slots, half.slots);
  CHECK(engine->model_info().weight_bytes < weight_bytes);
  CHECK_EQ(Engine::create(model, tiered("100%", "lfu"))->stats().tier.slots, 0);  // all fit: no tier
  CHECK_THROWS(Engine::create(model, tiered("1000", "lfu")), ErrorCode::kInvalidArgument, "expert_memory",
               {"two experts", std::to_string(2 * half.slot_bytes), "1000"});
  for (const char* policy : {"score", "lfu:miss=low", "hi_lo", "belady", "ring"})
    CHECK_THROWS(Engine::create(model, tiered("50%", policy)), ErrorCode::kUnsupported, "expert_policy", {"expected lfu"});
  EngineOptions o = tiered("50%", "lfu");
  o.expert_prefetch = "next_router";
  CHECK_THROWS(Engine::create(model, o), ErrorCode::kUnsupported, "expert_prefetch",
               {"next_router", "read experts where they lie"});
  o = tiered("50%", "lfu");
  o.expert_file = "experts.bin";
  CHECK_THROWS(Engine::create(model, o), ErrorCode::kUnsupported, "expert_file", {"on the CPU only", "expert_memory alone"});
  o = tiered("50%", "lfu");
  o.virtual_residents = 0.5;
  CHECK_THROWS(Engine::create(model, o), ErrorCode::kInvalidArgument, "virtual_residents", {"real one"});
#ifdef LYNX_RT_EMULATED
  // The budget comes out of the memory that the KV cache would get.
  setenv("SIMT_DEVICE_BYTES", "40000000", 1);
  EngineOptions large = options("cuda"), tier = tiered("25%", "lfu");
  for (EngineOptions* each : {&large, &tier}) each->max_num_seqs = each->max_num_batched_tokens = 200, each->max_model_len = 512;
  const int64_t kv = Engine::create(model, large)->model_info().kv_bytes;
  CHECK(Engine::create(model, tier)->model_info().kv_bytes > kv + half.slots * half.slot_bytes / 4);
  setenv("SIMT_DEVICE_BYTES", std::to_string(weight_bytes / 2).c_str(), 1);
  CHECK_THROWS(Engine::create(model, tiered("90%", "lfu")), ErrorCode::kOutOfMemory, "expert_memory", {"are free", "\"auto\""});
  unsetenv("SIMT_DEVICE_BYTES");
#endif
}

}  // namespace

void test_tiers() {
  auto all = Engine::create(model, options("cuda"));
  const ModelInfo info = all->model_info();
  if (info.num_experts == 0) return;
  const bool large = info.num_moe_layers * info.num_experts > 100;
  Expected expected{asks_of(info.vocab_size, large ? 3 : 7), {}};
  expected.answers = generate(*all, expected.asks);
  CHECK_EQ(all->stats().tier.slots, 0);
  const TempFolder folder;
  std::vector<int32_t> lists;
  for (int64_t l = 0; l < info.num_moe_layers; ++l) lists.insert(lists.end(), {4, 1, 7, 0, 2, 5});
  const std::string file = safetensors("experts", "I32", {info.num_moe_layers, 6}, lists);
  test_policies_and_lags(expected, folder.write("static.safetensors", file), large);
  for (const char* policy : {"lfu:decay=0.9", "lru", "lfru"}) test_counts(policy);
  if (large) return;
  test_resident_selection();
  test_memory(Engine::create(model, tiered("50%", "lfu"))->stats().tier, info.weight_bytes);
}

}  // namespace engine_case
