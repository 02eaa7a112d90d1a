// Part of test_engine: functions of the CUDA backend that the first model does not use, but other families do.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <tuple>

#include "backend/device_array.h"
#include "check.h"
#include "engine_case.h"

using namespace lynx_rt;
using namespace engine_case;

namespace {

// Compares a family's model with the CPU, and the bits of a request alone, in a batch, in other chunks, and while a policy acts on
// other requests.
void test_family() {
  std::cerr << std::filesystem::path(model).filename().string() << ": ";
  test_logits();
  EngineOptions o = options("cuda");
  auto engine = Engine::create(model, o);
  SamplingParams params = greedy();
  params.logprobs = 0;
  std::vector<Ask> asks = batch(engine->model_info().vocab_size, 5, params);
  const auto together = generate(*engine, asks);
  CHECK(generate(*engine, asks) == together);
  CHECK(generate(*engine, {asks[3]})[0] == together[3]);
  engine->set_expert_selection("lynx:alpha=8,beta=4,theta=1");
  asks[2].params.exact = true;
  CHECK(generate(*engine, asks)[2] == together[2]);
  asks[2].params.exact = false;
  o.max_num_batched_tokens = 11;
  o.block_size = 5;
  CHECK(generate(*Engine::create(model, o), asks) == together);
}

}  // namespace

void engine_case::test_families(const std::string& folder) {
  num_tokens = 6;
  std::vector<std::string> models;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) models.push_back(entry.path().string());
  std::sort(models.begin(), models.end());
  CHECK(models.size() > 5);
  for (const std::string& path : models) {
    model = path;
    test_family();
  }
}

// Codes on the device give the bits that weights give which are decoded when they are loaded, in 0.6 of their memory.
void engine_case::test_quantized(const std::string& folder) {
  int models = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    model = entry.path().string();
    ++models;
    EngineOptions o = options("cuda");
    auto as_it_lies = Engine::create(model, o);
    o.quantization = "dequantize";
    auto decoded = Engine::create(model, o);
    CHECK(double(as_it_lies->model_info().weight_bytes) < 0.6 * double(decoded->model_info().weight_bytes));
    SamplingParams params = greedy(4);
    params.logprobs = 0;
    const std::vector<Ask> asks = batch(as_it_lies->model_info().vocab_size, 3, params);
    const std::vector<Answer> got = generate(*as_it_lies, asks);
    CHECK_EQ(got[0].logprobs.size(), got[0].tokens.size());
    CHECK(got == generate(*decoded, asks));
    // Made-up weights have the same forms.
    o.quantization = "none";
    o.load_format = "dummy";
    auto dummy = Engine::create(model, o);
    CHECK_EQ(dummy->model_info().weight_bytes, as_it_lies->model_info().weight_bytes);
    const Answer made_up = generate(*dummy, {asks[0]})[0];
    CHECK(std::all_of(made_up.logprobs.begin(), made_up.logprobs.end(), [](float l) { return std::isfinite(l); }));
  }
  CHECK(models > 3);
}

// The biases of all experts, of three dtypes, are placed as float32, one after the other.
void engine_case::test_expert_biases() {
  auto backend = make_backend({"cuda", DType::kBF16, 1, ""});
  constexpr int64_t kExperts = 3, kHidden = 5, kWidth = 7;
  const std::vector<float> matrix(kHidden * kWidth, 0.5f);
  std::vector<float> values;  // exact in all of the dtypes
  for (int i = 0; i < 64; ++i) values.push_back(float(i) / 4);
  std::vector<uint16_t> bf16, f16;
  for (const float v : values) bf16.push_back(f32_to_bf16(v)), f16.push_back(f32_to_f16(v));
  std::vector<ExpertWeights> experts(kExperts);
  const auto bias = [&](int64_t e, int64_t first, int64_t size) {  // each expert has another dtype
    const void* data[] = {&values[size_t(first)], &bf16[size_t(first)], &f16[size_t(first)]};
    return WeightView{data[e], e == 0 ? DType::kF32 : e == 1 ? DType::kBF16 : DType::kF16, 1, size};
  };
  for (int64_t e = 0; e < kExperts; ++e) {
    ExpertWeights& w = experts[size_t(e)];
    w.gate = w.up = {matrix.data(), DType::kF32, kWidth, kHidden};
    w.down = {matrix.data(), DType::kF32, kHidden, kWidth};
    w.gate_bias = bias(e, 10 * e, kWidth), w.up_bias = bias(e, 10 * e + 20, kWidth), w.down_bias = bias(e, 10 * e + 30, kHidden);
  }
  backend->place_experts(experts);
  for (const auto& [member, first, size] :
       {std::tuple{&ExpertWeights::gate_bias, 0, kWidth}, std::tuple{&ExpertWeights::up_bias, 20, kWidth},
        std::tuple{&ExpertWeights::down_bias, 30, kHidden}}) {
    std::vector<float> got(size_t(kExperts * size));
    backend->read(got.data(), (experts[0].*member).data, kExperts * size * 4);
    for (int64_t e = 0; e < kExperts; ++e) {
      CHECK_EQ(int((experts[size_t(e)].*member).dtype), int(DType::kF32));
      for (int64_t i = 0; i < size; ++i) CHECK_EQ(got[size_t(e * size + i)], values[size_t(first + 10 * e + i)]);
    }
  }
}

// With one key of score 0 and a sink of 0, the result is half of V.
void engine_case::test_sinks() {
  auto backend = make_backend({"cuda", DType::kBF16, 1, ""});
  const float sink = 0;
  const WeightView sinks = backend->place({&sink, DType::kF32, 1, 1}, WeightUse::kVector);
  StepLimits limits;
  limits.max_rows = limits.max_logit_rows = limits.num_heads = limits.num_kv_heads = limits.vocab_size = 1;
  limits.hidden_size = limits.head_dim = 2;
  backend->reserve(limits);
  auto* memory = static_cast<float*>(backend->allocate(4096, "test"));  // zeros: q, K
  const uint16_t v[] = {f32_to_bf16(3), f32_to_bf16(-8)};
  backend->write(memory + 256, v, sizeof v);
  const int32_t position = 0, starts[] = {0, 1}, table = 0;
  const int64_t slot = 0;
  BatchView batch;
  batch.num_rows = batch.num_seqs = batch.max_blocks = 1;
  batch.positions = &position;
  batch.slots = &slot;
  batch.query_start = starts;
  batch.block_tables = &table;
  const BatchView step = backend->begin_step(batch);
  Activations attended(*backend, 1, 2, "test");
  backend->attention({memory, 2, 1, 1.0f, 0, 0, sinks}, step, {memory + 512, memory + 256, DType::kBF16, 1, 16, 1, 2, 2},
                     attended);
  float out[2];
  backend->read(out, attended.f32(), sizeof out);
  backend->end_step({});
  CHECK_EQ(out[0], 1.5f);
  CHECK_EQ(out[1], -4.0f);
  backend->release(memory, 4096);
}
