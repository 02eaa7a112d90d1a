// Compares the engine on the CUDA backend with the engine on the CPU. This source runs emulated (with runtime_simt.cc as the CUDA
// runtime) and on a GPU.
//   test_engine MODEL_FOLDER [tokens per request [short]]   a folder that has a config.json alone gets dummy weights; short: no
//                                                           long contexts
//   test_engine --tiers MODEL_FOLDER [tokens per request]  experts that do not fit, alone
//   test_engine --families FOLDER                           a few requests to each model in it
//   test_engine --quantized FOLDER                          as it lies and decoded, each model in it
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "backend/device_array.h"
#include "check.h"
#include "engine_case.h"
#include "lynx_rt/engine.h"
#include "research/simulation.h"
#ifdef LYNX_RT_EMULATED
#include "simt.h"
#endif

using namespace lynx_rt;
using namespace engine_case;

namespace {

double row_error(const float* got, const float* want, int64_t vocab) {
  double square = 0;
  for (int64_t v = 0; v < vocab; ++v) square += (double(got[v]) - want[v]) * (double(got[v]) - want[v]);
  return std::sqrt(square / double(vocab));
}

// A request has the same bits alone, in any batch, with any chunking, with and without overlapping launches; its batches pass
// through many sizes, recorded and replayed.
void test_batch_invariance() {
  EngineOptions o = options("cuda");
  auto engine = Engine::create(model, o);
  const int64_t vocab = engine->model_info().vocab_size;
  SamplingParams drawn = greedy();
  drawn.temperature = 0.9f;
  drawn.top_p = 0.9f;
  drawn.top_k = 40;
  std::vector<Ask> asks = batch(vocab, 7);
  for (const Ask& a : batch(vocab, 6, drawn)) asks.push_back(a);
  for (size_t i = 0; i < asks.size(); ++i) {
    asks[i].params.seed = 100 + i;
    if (i % 4 != 1) asks[i].params.logprobs = 0;  // log probabilities show errors that tokens hide
  }
  const std::vector<Answer> together = generate(*engine, asks);
  for (const Answer& a : together) CHECK_EQ(int(a.reason), int(FinishReason::kLength));
  for (size_t i : {size_t{0}, size_t{3}, asks.size() - 1}) CHECK(generate(*engine, {asks[i]})[0] == together[i]);
  CHECK(generate(*engine, asks) == together);  // all sizes are recorded by now
#ifdef LYNX_RT_EMULATED
  std::vector<Ask> others = batch(vocab, 9);
  for (Ask& a : others) a.prompt[0] = 3;
  const auto first = generate(*engine, others);
  CHECK(generate(*engine, others) == first);
  const int captures = simt::captures;
  CHECK(captures > 2);
  CHECK(generate(*engine, asks) == together);
  CHECK(generate(*engine, others) == first);
  CHECK_EQ(simt::captures, captures);  // other numbers of rows, other tokens: nothing is recorded again
#endif

  o.max_num_batched_tokens = 11;  // a batch of 9 cannot be padded to 16
  o.disable_dependent_launch = true;
  o.block_size = 5;
  o.enable_prefix_caching = true;
  CHECK(generate(*Engine::create(model, o), asks) == together);

  // With few pages requests are preempted and computed again, and have the same results.
  EngineOptions tight = options("cuda");
  tight.max_model_len = 64;
  tight.kv_cache_memory_bytes = 6 * 16 * engine->model_info().kv_bytes_per_token;
  auto small = Engine::create(model, tight);
  const std::vector<Ask> few(asks.begin(), asks.begin() + 7);
  const std::vector<Answer> preempted = generate(*small, few);
  CHECK(std::equal(preempted.begin(), preempted.end(), together.begin()));
  CHECK(small->stats().preemptions > 0);
}

void test_selection() {
  EngineOptions o = options("cuda");
  auto engine = Engine::create(model, o);
  if (engine->model_info().num_experts == 0) return;
  const int64_t vocab = engine->model_info().vocab_size;
  SamplingParams params = greedy();
  params.logprobs = 0;
  std::vector<Ask> asks = batch(vocab, 6, params);
  const auto own = generate(*engine, asks);
  asks[2].params.exact = true;
  for (const char* selection : {"lynx:alpha=8,beta=4,theta=1", "oea:k0=1"}) {
    engine->set_expert_selection(selection);
    engine->reset_stats();
    const auto selected = generate(*engine, asks);
    CHECK(selected[2] == own[2]);
    CHECK(!(selected == own));
    const EngineStats stats = engine->stats();
    int64_t before = 0, active = 0;
    for (const auto& l : stats.layers) {
      before += l.union_before, active += l.active;
      CHECK_EQ(l.steps, stats.decode_steps);
      CHECK_EQ(l.rows, stats.decode_rows);
    }
    CHECK(active < before);
    CHECK(active > 0);
    CHECK_EQ(int64_t(stats.layers.size()), engine->model_info().num_moe_layers);
  }
  engine->set_expert_selection("topk");
  asks[2].params.exact = false;
  CHECK(generate(*engine, asks) == own);  // a recorded step of another policy must not be used
}

// Long contexts, whose keys are split over blocks in decode and not in prefill, have the same bits in both, and the CPU's results
// within the error bound.
void test_long_contexts() {
  EngineOptions o = options("cuda");
  o.max_model_len = 512;
  o.max_num_batched_tokens = 512;
  auto engine = Engine::create(model, o);
  const int64_t vocab = engine->model_info().vocab_size;
  SamplingParams params = greedy(3);
  params.logprobs = 0;
  const std::vector<Ask> asks = {
      {prompt(0, vocab, 255), params}, {prompt(1, vocab, 20), params}, {prompt(2, vocab, 300), params}};
  const auto answers = generate(*engine, asks);
  for (size_t i = 0; i < asks.size(); ++i) {
    auto all = asks[i].prompt;
    all.insert(all.end(), answers[i].tokens.begin(), answers[i].tokens.end());
    const auto logits = engine->forward(all);
    for (size_t t = 0; t < answers[i].tokens.size(); ++t) {
      const float* row = &logits[(asks[i].prompt.size() - 1 + t) * size_t(vocab)];
      const float max = *std::max_element(row, row + vocab);
      double sum = 0;
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(double(row[v]) - double(max));
      CHECK_EQ(answers[i].logprobs[t], float(double(row[answers[i].tokens[t]]) - (double(max) + std::log(sum))));
    }
  }
}

void test_requests_of_their_own_kind() {
  auto engine = Engine::create(model, options("cuda"));
  const int64_t vocab = engine->model_info().vocab_size;
  std::vector<Ask> asks = batch(vocab, 4);
  const auto plain = generate(*engine, asks);
  asks[1].params.logit_bias = {{5, 1000.0f}};
  asks[2].params.allowed_token_ids = {7};
  asks[2].params.bad_words = {{7}};  // no token is left: an error of this request alone
  asks[3].params.prompt_logprobs = 1;
  const auto got = generate(*engine, asks);
  CHECK(got[0] == plain[0]);
  CHECK(got[1].tokens == std::vector<int32_t>(got[1].tokens.size(), 5));
  CHECK_EQ(int(got[2].reason), int(FinishReason::kError));
  CHECK_EQ(got[3].prompt_logprobs.size(), asks[3].prompt.size() - 1);
  CHECK(generate(*engine, {asks[3]})[0] == got[3]);
  Answer answer = got[3];
  answer.prompt_logprobs.clear();
  CHECK(answer == plain[3]);
}

void test_errors() {
  CHECK_THROWS(Engine::create(model, options("cuda:7")), ErrorCode::kUnsupported, "device", {"cuda:7"});
  CHECK_THROWS(Engine::create(model, options("cudax")), ErrorCode::kInvalidArgument, "device", {"cudax"});
  CHECK_THROWS(Engine::create(model, options("cuda", "float32")), ErrorCode::kUnsupported, "dtype", {"float32", "bfloat16"});
  EngineOptions o = options("cuda");
  o.max_num_seqs = 300;
  o.max_num_batched_tokens = 300;
  o.expert_selection = "lynx";
  CHECK_THROWS(Engine::create(model, o), ErrorCode::kInvalidArgument, "max_num_seqs", {"256", "300"});
  // Sizes without a kernel are refused before anything runs.
  StepLimits limits;
  limits.max_rows = limits.max_logit_rows = limits.hidden_size = limits.num_heads = limits.num_kv_heads = limits.vocab_size = 1;
  for (const auto& [head_dim, v_head_dim, wrong] : {std::array<int64_t, 3>{578, 512, 578}, {64, 514, 514}, {33, 32, 33}}) {
    limits.head_dim = head_dim, limits.v_head_dim = v_head_dim;
    CHECK_THROWS(make_backend({"cuda", DType::kBF16, 1, ""})->reserve(limits), ErrorCode::kUnsupported, "device",
                 {"head sizes", std::to_string(wrong)});
  }
#ifdef LYNX_RT_EMULATED
  setenv("SIMT_DEVICES", "0", 1);
  CHECK_THROWS(Engine::create(model, options("cuda")), ErrorCode::kUnsupported, "device", {"no CUDA-capable device"});
  CHECK(Engine::create(model, options("auto"))->model_info().device.starts_with("cpu"));
  unsetenv("SIMT_DEVICES");
  // The device is too small for the weights, for the memory of a step, and for the KV cache asked for.
  const int64_t weights = Engine::create(model, options("cuda"))->model_info().weight_bytes;
  setenv("SIMT_DEVICE_BYTES", std::to_string(weights / 2).c_str(), 1);
  CHECK_THROWS(Engine::create(model, options("cuda")), ErrorCode::kOutOfMemory, "device",
               {std::to_string(weights), "are free", "device=\"cpu\""});
  setenv("SIMT_DEVICE_BYTES", std::to_string(2 * weights).c_str(), 1);
  o = options("cuda");
  o.max_num_batched_tokens = 65536;
  CHECK_THROWS(Engine::create(model, o), ErrorCode::kOutOfMemory, "workspace", {"needs", "are free", "max_num_batched_tokens"});
  setenv("SIMT_DEVICE_BYTES", "200000000", 1);
  o = options("cuda");
  o.kv_cache_memory_bytes = 300000000;
  CHECK_THROWS(Engine::create(model, o), ErrorCode::kOutOfMemory, "kv_cache_memory_bytes", {"300000000", "are free"});
  unsetenv("SIMT_DEVICE_BYTES");
#endif
  CHECK(Engine::create(model, options("auto"))->model_info().device.starts_with("cuda"));
  CHECK(Engine::create(model, options("auto", "float32"))->model_info().device.starts_with("cpu"));
}

// A row with non-finite router scores is named in an error, and the backend can still be used.
void test_bad_scores() {
  auto backend = make_backend({"cuda", DType::kBF16, 1, ""});
  StepLimits limits;
  limits.max_rows = limits.max_logit_rows = 4;
  limits.hidden_size = limits.num_heads = limits.num_kv_heads = 1;
  limits.head_dim = 16;
  limits.num_experts = 4;
  limits.top_k = 2;
  limits.expert_width = limits.vocab_size = limits.num_moe_layers = 1;
  backend->reserve(limits);
  void* memory = backend->allocate(4096, "test");
  auto* scores = static_cast<float*>(memory);
  auto* ints = static_cast<int32_t*>(memory) + 64;
  Routing routing{ints, scores + 32, ints + 16, 0};
  DispatchPlan plan{ints + 32, ints + 64, ints + 96};
  const int32_t positions[3] = {0, 0, 0}, starts[4] = {0, 1, 2, 3}, tables[3] = {0, 0, 0};
  const int64_t slots[3] = {-1, -1, -1};
  BatchView batch;
  batch.num_rows = batch.num_seqs = 3;
  batch.positions = positions;
  batch.slots = slots;
  batch.query_start = starts;
  batch.block_tables = tables;
  batch.max_blocks = 1;
  for (const bool bad : {true, false}) {
    const std::vector<float> values = {1, 2, 3, 4, 4, 3, bad ? std::nanf("") : 2.0f, 1, 0, 0, 0, 0};
    backend->write(scores, values.data(), int64_t(values.size()) * 4);
    const BatchView step = backend->begin_step(batch);
    backend->route(scores, step, RouterRule{4, 2, true}, {}, routing, plan);
    SelectionStats stats[1];
    if (bad) {
      CHECK_THROWS(backend->end_step(stats), ErrorCode::kInvalidArgument, "router scores", {"row 1, expert 2"});
      continue;
    }
    backend->end_step(stats);
    CHECK_EQ(stats[0].active, 4);
    std::vector<int32_t> ids(6);
    backend->read(ids.data(), routing.ids, 24);
    CHECK_EQ(ids, (std::vector<int32_t>{3, 2, 0, 1, 0, 1}));
  }
  backend->release(memory, 4096);
}

// Records the routing of steps of many sizes, padded and replayed ones among them. A simulation of the recorded scores must have the
// engine's counters and the recorded experts, which must be those that each request reports.
void test_recording() {
  for (const char* selection : {"topk", "oea:k0=1"}) {
    EngineOptions o = options("cuda");
    o.expert_selection = selection;
    o.enable_mixed_chunk = false;
    o.enable_return_routed_experts = o.record_router_logits = true;
    auto engine = Engine::create(model, o);
    if (engine->model_info().num_experts == 0) return;
    std::vector<std::vector<int16_t>> told(8);
    for (const Ask& a : batch(engine->model_info().vocab_size, 7)) engine->add_request(a.prompt, a.params);
    while (engine->has_unfinished())
      for (const StepOutput& out : engine->step()) {
        std::vector<int16_t>& ids = told[out.request_id];
        ids.insert(ids.end(), out.routed_experts.ids.begin(), out.routed_experts.ids.end());
      }
    const RouterLogits r = engine->take_router_logits();
    const int64_t rows = int64_t(r.step.size()), width = int64_t(r.layers.size()) * r.num_experts_per_tok;
    std::vector<int64_t> order, offsets;
    for (int64_t t = 0; t < rows; ++t) {
      order.push_back(t);
      if (t == 0 || r.step[size_t(t)] != r.step[size_t(t - 1)]) offsets.push_back(t);
      const int16_t* ids = &r.routed_experts[size_t(t * width)];
      CHECK(std::equal(ids, ids + width, &told[r.request[size_t(t)]][size_t(r.position[size_t(t)] * width)]));
    }
    offsets.push_back(rows);
    std::vector<int16_t> simulated(size_t(rows * width));
    const auto counted = simulate({r.scores.data(),
                                   r.exact.data(),
                                   rows,
                                   r.num_model_layers,
                                   r.layers,
                                   r.num_experts,
                                   r.num_experts_per_tok,
                                   r.norm_topk_prob,
                                   {},
                                   nullptr},
                                  selection, order, offsets, simulated.data());
    CHECK(simulated == r.routed_experts);
    const EngineStats stats = engine->stats();
    CHECK_EQ(rows, stats.decode_rows);
    for (size_t l = 0; l < counted.size(); ++l) {
      CHECK_EQ(counted[l].active, stats.layers[l].active);
      CHECK_EQ(counted[l].remapped_pairs, stats.layers[l].remapped_pairs);
    }
  }
}

// Tests products of rows that come without a rounded form, after an op that made one: into columns of a wider array, with a bias, and
// accumulated.
void test_products() {
  auto backend = make_backend({"cuda", DType::kBF16, 1, ""});
  constexpr int64_t kRows = 3, kIn = 40, kOut = 21, kStride = 30;
  std::vector<float> weight(kOut * kIn), bias(kOut), x(kRows * kIn), norm(kIn, 1.0f), out(kRows * kStride, 0.5f);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = float(int(i * 37 % 17) - 8) / 8;  // exact in bfloat16
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(int(i * 53 % 13) - 6) / 4;
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = float(i);
  const WeightView placed = backend->place({weight.data(), DType::kF32, kOut, kIn}, WeightUse::kMatrix),
                   placed_bias = backend->place({bias.data(), DType::kF32, 1, kOut}, WeightUse::kVector),
                   placed_norm = backend->place({norm.data(), DType::kF32, 1, kIn}, WeightUse::kVector);
  StepLimits limits;
  limits.max_rows = limits.max_logit_rows = kRows;
  limits.hidden_size = kIn;
  limits.num_heads = limits.num_kv_heads = limits.vocab_size = 1;
  limits.head_dim = 16;
  backend->reserve(limits);
  const int64_t bytes = int64_t(x.size() + out.size()) * 4;
  auto* memory = static_cast<float*>(backend->allocate(bytes, "test"));
  float *device_x = memory, *device_out = memory + x.size();
  Activations normed(*backend, kRows, kIn, "test");
  backend->write(device_x, x.data(), int64_t(x.size()) * 4);
  backend->write(device_out, out.data(), int64_t(out.size()) * 4);
  backend->rmsnorm(device_x, placed_norm, 1e-6f, kRows, normed);
  const LinearPart part{placed, placed_bias, 7};
  backend->linear({device_x, kRows, kIn}, {&part, 1}, true, device_out, kStride);
  backend->read(out.data(), device_out, int64_t(out.size()) * 4);
  for (int64_t t = 0; t < kRows; ++t)
    for (int64_t c = 0; c < kStride; ++c) {
      double want = 0.5;
      if (c >= 7 && c < 7 + kOut) {
        want += bias[size_t(c - 7)];
        for (int64_t k = 0; k < kIn; ++k) want += double(weight[size_t((c - 7) * kIn + k)]) * x[size_t(t * kIn + k)];
      }
      CHECK_EQ(double(out[size_t(t * kStride + c)]), want);  // small multiples of 1/32: exact in float32
    }

  // Three calls of sample() in one step, each with tokens of its own, and one with masks in the next step.
  const std::vector<float> logits = {0, 3, 1, 2, 5, 4, std::nanf(""), 1};
  backend->write(device_x, logits.data(), int64_t(logits.size()) * 4);
  backend->begin_step({});
  const std::vector<DrawParams> draws(1, DrawParams{0, 1, 0, 0, 0});
  const std::vector<DrawParams> masked = {{0, 1, 0, 0, 0, 1}, {0, 1, 0, 0, 0, 0}};
  const std::vector<int32_t> masks = {-1 - 2, 0b0101};
  int32_t tokens[5] = {-9, -9, -9, -9, -9};
  backend->sample(device_x, draws, {}, 4, tokens);
  backend->sample(device_x + 4, draws, {}, 2, tokens + 1);
  backend->sample(device_x + 6, draws, {}, 2, tokens + 2);
  backend->end_step({});
  backend->begin_step({});
  backend->sample(device_x, masked, masks, 2, tokens + 3);
  backend->end_step({});
  CHECK_EQ(tokens[0], 1);
  CHECK_EQ(tokens[1], 0);
  CHECK_EQ(tokens[2], kNanLogit);
  CHECK_EQ(tokens[3], 0);  // of {0, 3} only the first is allowed
  CHECK_EQ(tokens[4], 0);
  // Copies within the device's memory are in order with what writes and reads it.
  backend->copy(device_x + 4, device_x, 4 * sizeof(float));
  std::vector<float> copied(8);
  backend->read(copied.data(), device_x, 8 * sizeof(float));
  CHECK_EQ(std::vector<float>(copied.begin() + 4, copied.end()), (std::vector<float>{0, 3, 1, 2}));
  backend->release(memory, bytes);
}

// A table of experts has its formats, and a format without a kernel is refused by name.
void test_expert_formats() {
  auto backend = make_backend({"cuda", DType::kBF16, 1, ""});
  const std::vector<float> matrix(64, 1.0f);
  std::vector<ExpertWeights> experts(2);
  for (ExpertWeights& e : experts) {
    e.gate = e.up = {matrix.data(), DType::kF32, 4, 16};
    e.down = {matrix.data(), DType::kF32, 16, 4};
  }
  CHECK_THROWS(backend->expert_table(experts), ErrorCode::kUnsupported, "experts", {"packed", "expert 0 is float32"});
  backend->place_experts(experts);
  const ExpertTable table = backend->expert_table(experts);
  CHECK(table.entries() != nullptr);
  CHECK_EQ(table.size(), 2);
  CHECK_EQ(table[1].down.bytes(), 16 * 4 * 2);
  experts[1].down.format = QuantFormat::kInt8;
  CHECK_THROWS(backend->expert_table(experts), ErrorCode::kUnsupported, "experts", {"packed", "expert 1 is int8"});
}

}  // namespace

// Both backends round to bfloat16 at the same places, except for attention's probabilities, which only the CUDA backend rounds. So the
// CUDA backend must be about as close to float32 as the CPU's bfloat16 is. Medians over rows are compared, because a score that
// changes an expert in one backend moves single rows by much more.
void engine_case::test_logits() {
  auto cuda = Engine::create(model, options("cuda")), cpu = Engine::create(model, options("cpu")),
       exact = Engine::create(model, options("cpu", "float32"));
  const int64_t vocab = exact->model_info().vocab_size;
  CHECK(cuda->model_info().device.starts_with("cuda:0"));
  CHECK_EQ(cuda->model_info().weight_bytes, cpu->model_info().weight_bytes);
  std::vector<double> ours, theirs;
  double largest = 0;
  for (int i = 0; i < 2; ++i) {
    const auto ids = prompt(i, vocab, 45);
    const auto a = cuda->forward(ids), b = cpu->forward(ids), want = exact->forward(ids);
    CHECK_EQ(a.size(), want.size());
    for (size_t t = 0; t < ids.size(); ++t) {
      ours.push_back(row_error(&a[t * size_t(vocab)], &want[t * size_t(vocab)], vocab));
      theirs.push_back(row_error(&b[t * size_t(vocab)], &want[t * size_t(vocab)], vocab));
      for (int64_t v = 0; v < vocab; ++v) largest = std::max(largest, double(std::abs(want[t * size_t(vocab) + size_t(v)])));
    }
    // Chunks of any size give the same bits.
    for (int64_t chunk : {1, 5, 32}) CHECK(cuda->forward(ids, chunk) == a);
  }
  std::sort(ours.begin(), ours.end());
  std::sort(theirs.begin(), theirs.end());
  const double mine = ours[ours.size() / 2], other = theirs[theirs.size() / 2];
  std::cerr << "median rms error of a row: cuda " << mine << ", cpu " << other << ", largest logit " << largest << "\n";
  CHECK(mine <= 1.25 * other);
  CHECK(mine > 0);  // not the float32 engine by mistake

  // Greedy tokens are float32's wherever float32's margin exceeds twice the row's largest error.
  const auto ids = prompt(1, vocab, 20);
  const auto answer = generate(*cuda, {{ids, greedy()}})[0];
  auto all = ids;
  all.insert(all.end(), answer.tokens.begin(), answer.tokens.end());
  const auto want = exact->forward(all), got = cuda->forward(all);
  for (size_t i = 0; i < answer.tokens.size(); ++i) {
    const float *row = &want[(ids.size() - 1 + i) * size_t(vocab)], *mine_row = &got[(ids.size() - 1 + i) * size_t(vocab)];
    double error = 0;
    for (int64_t v = 0; v < vocab; ++v) error = std::max(error, double(std::abs(row[v] - mine_row[v])));
    CHECK(row[answer.tokens[i]] >= *std::max_element(row, row + vocab) - 2 * error);
    CHECK_EQ(answer.tokens[i], std::max_element(mine_row, mine_row + vocab) - mine_row);  // generation = forward, bitwise
  }
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  if (std::string(argv[1]) == "--families") {
    if (argc < 3) return 2;
    load_format = "dummy";
    test_families(argv[2]);
    return check::result("test_engine");
  }
  if (std::string(argv[1]) == "--tiers") {
    if (argc < 3) return 2;
    model = argv[2];
    if (argc > 3) num_tokens = std::atoi(argv[3]);
    if (!std::filesystem::exists(model + "/model.safetensors")) load_format = "dummy";
    test_tiers();
    return check::result("test_engine");
  }
  if (std::string(argv[1]) == "--images") {
    if (argc < 3) return 2;
    test_images(argv[2]);
    return check::result("test_engine");
  }
  if (std::string(argv[1]) == "--quantized") {
    if (argc < 3) return 2;
    test_quantized(argv[2]);
    return check::result("test_engine");
  }
  model = argv[1];
  if (argc > 2) num_tokens = std::atoi(argv[2]);
  if (!std::filesystem::exists(model + "/model.safetensors")) load_format = "dummy";
  test_bad_scores();
  test_products();
  test_expert_formats();
  test_expert_biases();
  test_sinks();
  test_errors();
  test_logits();
  test_batch_invariance();
  test_selection();
  test_recording();
  test_policies();
  test_tiers();
  if (argc <= 3) test_long_contexts();
  test_requests_of_their_own_kind();
  return check::result("test_engine");
}
