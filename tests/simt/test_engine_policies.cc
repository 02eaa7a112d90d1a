// Runs every selection policy through the engine: the CUDA backend against the CPU's, tables read from files, recorded steps.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/types.h"
#include "engine_case.h"
#include "temp_folder.h"

namespace engine_case {

namespace {

std::vector<std::string> selections(const ModelInfo& info, const TempFolder& folder) {
  const int64_t layers = info.num_moe_layers, experts = info.num_experts, k = info.num_experts_per_tok;
  constexpr int64_t kRecorded = 7;
  std::vector<float> similarity;
  std::vector<int32_t> alias, recorded;
  for (int64_t i = 0; i < layers * experts * experts; ++i) similarity.push_back(float(i * 37 % 101) / 101);
  for (int64_t i = 0; i < layers * experts; ++i) alias.push_back(int32_t(i % experts / 2 + i / experts % 2));
  for (int64_t row = 0; row < kRecorded * layers; ++row)
    for (int64_t j = 0; j < k; ++j) recorded.push_back((row + j) % 5 == 4 ? -1 : int32_t((row * row + j * 2) % experts));
  const std::string sere = folder.write("sere.safetensors",
                                        safetensors("similarity", "F32", {layers, experts, experts}, similarity)),
                    aliases = folder.write("alias.safetensors", safetensors("alias", "I32", {layers, experts}, alias)),
                    replay = folder.write("replay.safetensors",
                                          safetensors("routed_experts", "I32", {kRecorded, layers, k}, recorded));
  const std::string last = std::to_string(info.num_layers - 1);
  return {"lynx",
          "oea:k0=1",
          "lynx_literal",
          "xshare:m=0.4,k0=1",
          "des_vote:m=0.4",
          "cover:delta=0.3",
          "oea:k0=1,refill=0.8,damp=0.5",
          "skip:ratio=0.95",
          "top1",
          "deny_rank:rank=0",
          "capacity:factor=0.75",
          "sere:s=1,rho=0.3,file=" + sere,
          "alias:file=" + aliases,
          "replay:file=" + replay,
          "topk@" + last + "=replay:file=" + replay,
          "lynx:phase=all@" + last + "=skip:ratio=0.95,phase=all"};
}

struct Run {
  std::vector<Answer> answers;
  EngineStats stats;
};

Run run(Engine& engine, const std::string& selection, const std::vector<Ask>& asks) {
  engine.set_expert_selection(selection);
  engine.reset_stats();
  Run r;
  r.answers = generate(engine, asks);
  r.stats = engine.stats();
  return r;
}

// Sums of the step counters of all layers.
struct Counts {
  int64_t union_before = 0, active = 0, remapped = 0;

  explicit Counts(const EngineStats& stats) {
    for (const EngineStats::Layer& l : stats.layers) {
      union_before += l.union_before;
      active += l.active;
      remapped += l.remapped_pairs;
    }
  }
};

// Returns the differences of the answers' log probabilities from those of `want`.
std::vector<double> errors(const std::vector<Answer>& got, const std::vector<Answer>& want) {
  std::vector<double> e;
  for (size_t i = 0; i < got.size(); ++i) {
    CHECK_EQ(got[i].logprobs.size(), want[i].logprobs.size());
    for (size_t n = 0; n < got[i].logprobs.size(); ++n) e.push_back(std::abs(double(got[i].logprobs[n]) - want[i].logprobs[n]));
  }
  return e;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The answers of an isolation group have the same bits whoever shares its steps, also when recorded steps are replayed.
void test_groups(Engine& engine, const std::string& selection, const std::vector<Ask>& asks) {
  std::vector<Ask> mine(asks.begin(), asks.begin() + 3), all;
  for (Ask& ask : mine) ask.params.isolation_group = "a";
  for (size_t i = 0; i < asks.size(); ++i) {
    if (i < mine.size()) all.push_back(mine[i]);
    all.push_back(asks[i]);
    if (i % 2) all.back().params.isolation_group = "b";
  }
  engine.set_expert_selection(selection);
  const std::vector<Answer> alone = generate(engine, mine);
  for (int times = 0; times < 3; ++times) {
    const std::vector<Answer> together = generate(engine, all);
    for (size_t i = 0; i < mine.size(); ++i) CHECK(together[2 * i] == alone[i]);
  }
}

}  // namespace

// All engines are forced to generate the same tokens, so that a score that changes an expert in one of them only affects one row. The
// CUDA backend must be about as close to float32 as the CPU's bfloat16 is, as in test_logits().
void test_policies() {
  auto cuda = Engine::create(model, options("cuda")), cpu = Engine::create(model, options("cpu")),
       exact = Engine::create(model, options("cpu", "float32"));
  const ModelInfo info = cuda->model_info();
  if (info.num_experts == 0) return;
  EngineOptions counting = options("cuda");
  counting.virtual_residents = 0.5;
  CHECK_THROWS(Engine::create(model, counting), ErrorCode::kUnsupported, "virtual_residents", {"expected 0", "device=\"cpu\""});
  std::vector<Ask> asks;
  for (int i = 0; i < 7; ++i) {
    asks.push_back({prompt(i, info.vocab_size, 1 + 2 * i), greedy(std::max(1, std::min(num_tokens, 8) - 2 * (i % 4)))});
    asks.back().params.logprobs = 0;
    asks.back().params.allowed_token_ids = {int32_t(3 + 11 * i)};
  }
  asks[4].params.exact = true;
  const TempFolder folder;
  const std::vector<Answer> own = generate(*cuda, asks);
  std::vector<double> all, all_of_cpu;
  for (const std::string& selection : selections(info, folder)) {
    const int failures_before = check::failures;
    const Run a = run(*cuda, selection, asks), again = run(*cuda, selection, asks), b = run(*cpu, selection, asks),
              want = run(*exact, selection, asks);
    CHECK(again.answers == a.answers);  // now recorded steps are replayed from the start
    CHECK(a.answers[4] == own[4]);
    CHECK(!(a.answers == own));

    // The backends may choose different experts where two scores are as close as the rounding: for one pair in 50 at most.
    const Counts got(a.stats), expected(b.stats);
    const int64_t pairs = a.stats.decode_rows * info.num_moe_layers * info.num_experts_per_tok;
    CHECK_EQ(a.stats.decode_rows, b.stats.decode_rows);
    CHECK(expected.remapped > 0);
    for (const auto count : {&Counts::union_before, &Counts::active, &Counts::remapped})
      CHECK(50 * std::abs(got.*count - expected.*count) <= pairs);
    if (selection.starts_with("replay")) CHECK_EQ(got.active, expected.active);  // the choice does not depend on scores

    const auto mine = errors(a.answers, want.answers), other = errors(b.answers, want.answers);
    // The median of so few values has a deviation of a fifth, so a ratio of 2 is three deviations away.
    CHECK(median(mine) <= 2 * median(other));
    all.insert(all.end(), mine.begin(), mine.end());
    all_of_cpu.insert(all_of_cpu.end(), other.begin(), other.end());
    if (check::failures != failures_before)
      std::cerr << "  in " << selection << ": cuda, cpu: median errors " << median(mine) << ", " << median(other) << ", union "
                << got.union_before << ", " << expected.union_before << ", active " << got.active << ", " << expected.active
                << ", remapped " << got.remapped << ", " << expected.remapped << "\n";
  }
  EngineOptions apart = options("cuda");
  apart.enable_mixed_chunk = false;    // so that other requests' prompts share no step with decode rows
  apart.max_num_batched_tokens = 160;  // all prompts fit one step
  auto isolating = Engine::create(model, apart);
  for (const char* selection : {"lynx", "oea:k0=1", "capacity:factor=0.5"}) test_groups(*isolating, selection, asks);
  std::cerr << "policies, median error of a log probability: cuda " << median(all) << ", cpu " << median(all_of_cpu) << "\n";
  CHECK(median(all) <= 1.25 * median(all_of_cpu));
}

}  // namespace engine_case
