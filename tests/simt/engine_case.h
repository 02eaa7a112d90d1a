// Code that the files of test_engine share.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/types.h"
#include "check.h"
#include "lynx_rt/engine.h"

namespace engine_case {

using namespace lynx_rt;

inline std::string model, load_format = "auto";
inline int32_t num_tokens = 12;

inline EngineOptions options(const std::string& device, const std::string& dtype = "bfloat16") {
  EngineOptions o;
  o.device = device;
  o.dtype = dtype;
  o.load_format = load_format;
  o.max_num_seqs = 11;  // no power of two, so the largest batch is padded to less than the next one
  o.max_num_batched_tokens = 48;
  o.max_model_len = 96;
  o.num_threads = 2;
  o.enable_prefix_caching = false;
  return o;
}

inline SamplingParams greedy(int32_t tokens = num_tokens) {
  SamplingParams p;
  p.temperature = 0;
  p.max_tokens = tokens;
  p.ignore_eos = true;
  return p;
}

inline std::vector<int32_t> prompt(int number, int64_t vocab, int length) {
  std::vector<int32_t> ids;
  for (int i = 0; i < length; ++i) ids.push_back(int32_t((7919 * (number + 1) + 104729 * i + i * i) % vocab));
  return ids;
}

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs, prompt_logprobs;  // log probabilities of the tokens, where asked for
  FinishReason reason = FinishReason::kNone;
  bool operator==(const Answer&) const = default;
};

struct Ask {
  std::vector<int32_t> prompt;
  SamplingParams params;
};

// Runs the engine until all requests have ended, and returns the answers of `ids`.
inline std::vector<Answer> answers_of(Engine& engine, const std::vector<uint64_t>& ids) {
  std::vector<Answer> answers(ids.size());
  while (engine.has_unfinished()) {
    for (const StepOutput& out : engine.step()) {
      Answer& a = answers[size_t(std::find(ids.begin(), ids.end(), out.request_id) - ids.begin())];
      a.tokens.insert(a.tokens.end(), out.token_ids.begin(), out.token_ids.end());
      for (const TokenLogprobs& l : out.logprobs) a.logprobs.push_back(l[0].logprob);
      for (const TokenLogprobs& l : out.prompt_logprobs)
        if (!l.empty()) a.prompt_logprobs.push_back(l[0].logprob);
      if (out.finish_reason != FinishReason::kNone) a.reason = out.finish_reason;
    }
  }
  engine.check_integrity();
  return answers;
}

inline std::vector<Answer> generate(Engine& engine, const std::vector<Ask>& asks) {
  std::vector<uint64_t> ids;
  for (const Ask& a : asks) ids.push_back(engine.add_request(a.prompt, a.params));
  return answers_of(engine, ids);
}

inline std::vector<Ask> batch(int64_t vocab, int count, SamplingParams params = greedy()) {
  std::vector<Ask> asks;
  for (int i = 0; i < count; ++i) {
    asks.push_back({prompt(i, vocab, 1 + 9 * i % 37), params});
    asks.back().params.max_tokens = std::max(1, params.max_tokens - 2 * (i % 5));  // batches of many sizes
  }
  return asks;
}

// Returns the bytes of a safetensors file of one tensor.
template <class T>
std::string safetensors(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
                        const std::vector<T>& values) {
  const size_t bytes = values.size() * sizeof(T);
  std::string header =
      str_cat("{\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":[0,", bytes, "]}}");
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  std::string file(sizeof length + header.size() + bytes, ' ');
  std::memcpy(file.data(), &length, sizeof length);
  std::memcpy(file.data() + sizeof length, header.data(), header.size());
  std::memcpy(file.data() + sizeof length + header.size(), values.data(), bytes);
  return file;
}

void test_policies();                         // test_engine_policies.cc
void test_tiers();                            // test_engine_tiers.cc
void test_logits();                           // test_engine.cc
void test_images(const std::string& folder);  // test_engine_images.cc
// test_engine_families.cc: makes a few requests to each model in the folder.
void test_families(const std::string& folder);
void test_quantized(const std::string& folder);
void test_expert_biases();
void test_sinks();

}  // namespace engine_case
