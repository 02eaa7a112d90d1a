// Tests csrc/engine/engine_core.h: token masks, and rollbacks of tokens, which are drawn again. Usage: test_engine_core MODEL_FOLDER
#include "engine/engine_core.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>

#include "check.h"

using namespace lynx_rt;

namespace {

using Ids = std::vector<int32_t>;
std::string model;

EngineOptions options(int64_t kv_tokens = 0) {
  EngineOptions o;
  o.device = "cpu";
  o.num_threads = 2;
  o.max_num_seqs = 8;
  o.max_num_batched_tokens = 48;
  o.block_size = 8;
  o.expert_selection = "topk";
  o.max_model_len = 256;
  if (kv_tokens) {
    EngineOptions sized = o;
    EngineCore probe(model, sized);
    o.kv_cache_memory_bytes = kv_tokens * probe.model_info().kv_bytes_per_token;
    o.max_model_len = kv_tokens;
  }
  return o;
}

SamplingParams greedy(int32_t max_tokens) {
  SamplingParams p;
  p.temperature = 0;
  p.max_tokens = max_tokens;
  p.ignore_eos = true;
  return p;
}

SamplingParams random_params(int32_t max_tokens, uint64_t seed) {
  SamplingParams p = greedy(max_tokens);
  p.temperature = 1.2f;
  p.seed = seed;
  return p;
}

struct Result {
  Ids tokens;
  std::vector<TokenLogprobs> logprobs;
  std::string error;
};

// Runs all requests to their end and returns the results by request.
std::map<uint64_t, Result> finish(EngineCore& core) {
  std::map<uint64_t, Result> results;
  while (core.has_unfinished())
    for (StepOutput& out : core.step()) {
      Result& r = results[out.request_id];
      r.tokens.insert(r.tokens.end(), out.token_ids.begin(), out.token_ids.end());
      r.logprobs.insert(r.logprobs.end(), out.logprobs.begin(), out.logprobs.end());
      r.error = out.error;
    }
  return results;
}

Result run_one(EngineCore& core, const Ids& prompt, const SamplingParams& params, TokenMask mask = nullptr) {
  const uint64_t id = core.add(prompt, params, std::move(mask));
  return finish(core)[id];
}

bool same(const std::vector<TokenLogprobs>& a, const std::vector<TokenLogprobs>& b) {
  const auto equal = [](const TokenLogprob& x, const TokenLogprob& y) {
    return x.token_id == y.token_id && x.logprob == y.logprob && x.rank == y.rank;
  };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const TokenLogprobs& x, const TokenLogprobs& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(), equal);
  });
}

void allow(std::span<int32_t> words, int32_t token) { words[size_t(token / 32)] |= int32_t(1u << (token % 32)); }

const Ids kPrompt = {1, 20, 21, 7, 99};

// With a mask that changes with every token, each token is the likeliest allowed one by forward()'s logits.
void test_masked_greedy(EngineCore& core) {
  const auto vocab = int32_t(core.model_info().vocab_size);
  const auto is_allowed = [](size_t length, int32_t token) { return mix_bits(uint64_t(token) * 1000 + length) % 5 == 0; };
  int64_t calls = 0;
  const TokenMask mask = [&](std::span<const int32_t> tokens, std::span<int32_t> words) {
    CHECK_EQ(int64_t(words.size()), token_mask_words(vocab));
    CHECK(std::all_of(words.begin(), words.end(), [](int32_t word) { return word == 0; }));
    ++calls;
    for (int32_t v = 0; v < int32_t(words.size()) * 32; ++v)  // bits after the vocabulary are set, too, and must be ignored
      if (is_allowed(tokens.size(), v) || v >= vocab) allow(words, v);
    return true;
  };
  const Result got = run_one(core, kPrompt, greedy(9), mask);
  CHECK_EQ(got.error, "");
  CHECK_EQ(got.tokens.size(), 9);
  CHECK_EQ(calls, 9);
  Ids tokens = kPrompt;
  tokens.insert(tokens.end(), got.tokens.begin(), got.tokens.end());
  const std::vector<float> logits = core.forward(tokens, 0, {});
  int64_t not_likeliest = 0;
  for (size_t i = kPrompt.size(); i < tokens.size(); ++i) {
    const float* row = logits.data() + int64_t(i - 1) * vocab;
    int32_t best = -1;
    for (int32_t v = 0; v < vocab; ++v)
      if (is_allowed(i, v) && (best < 0 || row[v] > row[best])) best = v;
    CHECK_EQ(tokens[i], best);
    not_likeliest += std::any_of(row, row + vocab, [&](float logit) { return logit > row[best]; });
  }
  CHECK(not_likeliest > 3);
  // The engine's own sampler draws the same, with log probabilities of the model's distribution, masked or not.
  SamplingParams told = greedy(9);
  told.logprobs = 3;
  const Result again = run_one(core, kPrompt, told, mask);
  CHECK_EQ(again.tokens, got.tokens);
  for (size_t i = 0; i < again.logprobs.size(); ++i) {
    const float* row = logits.data() + int64_t(kPrompt.size() + i - 1) * vocab;
    double sum = 0;
    for (int32_t v = 0; v < vocab; ++v) sum += std::exp(double(row[v]));
    for (const TokenLogprob& t : again.logprobs[i])
      CHECK(std::abs(double(t.logprob) - (double(row[t.token_id]) - std::log(sum))) < 1e-5);
    CHECK_EQ(again.logprobs[i][0].token_id, got.tokens[i]);
  }
}

// A constant mask has the effect of allowed_token_ids: the same tokens and log probabilities bitwise, drawn by the backend or not.
void test_mask_is_allowed_token_ids(EngineCore& core) {
  for (const Ids& ids : {Ids{3}, Ids{5, 31, 32, 63, 64, 200}, Ids{300, 4, 90, 91, 92, 93, 94, 95, 96}})
    for (const bool logprobs : {false, true})
      for (const float top_p : {1.0f, 0.7f}) {
        const TokenMask mask = [&](std::span<const int32_t>, std::span<int32_t> words) {
          for (const int32_t id : ids) allow(words, id);
          return true;
        };
        SamplingParams p = random_params(12, 77);
        p.top_p = top_p;
        p.logprobs = logprobs ? 2 : -1;
        const Result got = run_one(core, kPrompt, p, mask);
        p.allowed_token_ids = ids;
        const Result want = run_one(core, kPrompt, p);
        CHECK_EQ(got.tokens, want.tokens);
        CHECK(same(got.logprobs, want.logprobs));
      }
}

// An error of a mask names its request and ends only this request; others have the results that they have alone.
void test_mask_errors(EngineCore& core) {
  const Result alone = run_one(core, kPrompt, random_params(10, 5));
  SamplingParams with_logprobs = greedy(10);
  with_logprobs.logprobs = 0;
  const TokenMask nothing = [](std::span<const int32_t> tokens, std::span<int32_t> words) {
    if (tokens.size() >= kPrompt.size() + 3) return true;
    std::fill(words.begin(), words.end(), -1);
    return true;
  };
  const TokenMask fails = [](std::span<const int32_t>, std::span<int32_t>) -> bool { throw std::runtime_error("no grammar"); };
  const TokenMask declines = [](std::span<const int32_t>, std::span<int32_t> words) {
    allow(words, 3);
    return false;
  };
  const uint64_t beside = core.add(kPrompt, random_params(10, 5)), empty = core.add(kPrompt, random_params(10, 6), nothing),
                 empty_host = core.add(kPrompt, with_logprobs, nothing), failing = core.add(kPrompt, greedy(10), fails),
                 free = core.add(kPrompt, random_params(10, 5), declines);
  std::map<uint64_t, Result> results = finish(core);
  CHECK_EQ(results[beside].tokens, alone.tokens);
  CHECK_EQ(results[beside].error, "");
  CHECK_EQ(results[free].tokens, alone.tokens);
  const auto has = [&](uint64_t id, const std::string& part) {
    const std::string& text = results[id].error;
    CHECK(text.find("request " + std::to_string(id)) != std::string::npos);
    CHECK(text.find(part) != std::string::npos);
    if (text.find(part) == std::string::npos) std::cerr << "  " << text << "\n";
  };
  has(empty, "the token mask leaves no token");
  has(empty_host, "the token mask leaves no token");
  has(failing, "token mask: no grammar");
  CHECK_EQ(results[empty].tokens.size(), 3);
  CHECK_EQ(results[empty_host].tokens.size(), 3);
  CHECK(results[failing].tokens.empty());
  core.check_integrity();
}

struct Life {
  Ids prompt;
  SamplingParams params;
};

// Rolls back tokens of requests at random: the tokens drawn again must be the same.
void test_random_rollbacks(int64_t kv_tokens, uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](uint32_t n) { return int32_t(random() % n); };
  std::vector<Life> lives;
  for (int i = 0; i < 24; ++i) {
    Life life;
    for (int32_t t = 0, n = below(2) ? below(30) : 0; t < n; ++t) life.prompt.push_back(3 * t + 5);  // prompts share beginnings
    for (int32_t t = 0, n = 1 + below(8); t < n; ++t) life.prompt.push_back(below(300));
    life.params = below(3) ? random_params(1 + below(24), uint64_t(below(1000))) : greedy(1 + below(24));
    if (below(3) == 0) life.params.logprobs = 1;
    if (below(4) == 0) life.params.prompt_logprobs = 0;
    if (below(4) == 0) life.params.repetition_penalty = 1.2f;
    lives.push_back(life);
  }
  EngineOptions alone_options = options(kv_tokens);
  alone_options.enable_prefix_caching = false;
  EngineCore alone(model, alone_options), core(model, options(kv_tokens));
  std::map<uint64_t, size_t> life_of;
  std::vector<Result> want, got(lives.size());
  for (size_t i = 0; i < lives.size(); ++i) {
    want.push_back(run_one(alone, lives[i].prompt, lives[i].params));
    life_of[core.add(lives[i].prompt, lives[i].params)] = i;
  }
  int64_t num_taken_back = 0;
  while (core.has_unfinished()) {
    for (StepOutput& out : core.step()) {
      Result& r = got[life_of[out.request_id]];
      CHECK_EQ(out.error, "");
      r.tokens.insert(r.tokens.end(), out.token_ids.begin(), out.token_ids.end());
      r.logprobs.insert(r.logprobs.end(), out.logprobs.begin(), out.logprobs.end());
    }
    core.check_integrity();
    for (const auto& [id, life] : life_of) {
      if (below(8)) continue;
      const int32_t n = below(12);
      if (!core.rollback(id, n)) continue;
      num_taken_back += n;
      Result& r = got[life];
      r.tokens.resize(r.tokens.size() - size_t(n));
      if (!r.logprobs.empty()) r.logprobs.resize(r.tokens.size());
    }
    core.check_integrity();
  }
  for (size_t i = 0; i < lives.size(); ++i) {
    CHECK_EQ(got[i].tokens, want[i].tokens);
    CHECK(same(got[i].logprobs, want[i].logprobs));
  }
  CHECK(num_taken_back > 50);
  CHECK(kv_tokens == 0 || core.num_preemptions() > 0);
  CHECK_EQ(core.stats().kv_blocks_used, 0);
  CHECK_EQ(core.stats().generation_tokens, alone.stats().generation_tokens);
  CHECK(!core.rollback(1, 1));
}

// The public Engine takes masks as the core does.
void test_public_engine() {
  const std::unique_ptr<Engine> engine = Engine::create(model, options());
  const auto run = [&](TokenMask mask) {
    engine->add_request(kPrompt, greedy(6), std::move(mask));
    Ids tokens;
    while (engine->has_unfinished())
      for (const StepOutput& out : engine->step()) tokens.insert(tokens.end(), out.token_ids.begin(), out.token_ids.end());
    return tokens;
  };
  const TokenMask by_turns = [](std::span<const int32_t> tokens, std::span<int32_t> words) {
    allow(words, int32_t(tokens.size()) + 40);
    return true;
  };
  CHECK_EQ(run(by_turns), (Ids{45, 46, 47, 48, 49, 50}));
  CHECK_EQ(run(nullptr).size(), 6);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  model = argv[1];
  EngineCore core(model, options());
  test_masked_greedy(core);
  test_mask_is_allowed_token_ids(core);
  test_mask_errors(core);
  test_public_engine();
  for (const uint32_t seed : {1u, 2u}) {
    test_random_rollbacks(0, seed);
    test_random_rollbacks(128, seed);
  }
  return check::result("test_engine_core");
}
