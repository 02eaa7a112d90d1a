// Tests lynx_rt_params and lynx_rt_output: each field does what it does in the C++ API, and 0 is its default. It only compiles if the
// lists of engine/public_fields.h are complete.
// Usage: test_c_api_params MODEL_FOLDER
#include "c_api_client.h"
#include "engine/public_fields.h"
#include "lynx_rt/engine.h"

namespace {

// Converts to any type, to find out how many values can initialise a struct.
struct AnyValue {
  template <class T>
  operator T() const;
};

template <class Struct, class... Values>
constexpr int num_fields() {
  if constexpr (requires { Struct{Values{}..., AnyValue{}}; })
    return num_fields<Struct, Values..., AnyValue>();
  else
    return sizeof...(Values);
}

// clang-format off
#define ONE(name) +1
static_assert(num_fields<lynx_rt::EngineOptions>() ==
              LYNX_RT_OPTION_FIELDS(ONE) LYNX_RT_OPTION_FIELDS_UNLIKE_C(ONE) LYNX_RT_OPTION_CALLBACKS(ONE));
static_assert(num_fields<lynx_rt::SamplingParams>() ==
              LYNX_RT_SAMPLING_FIELDS(ONE) LYNX_RT_SAMPLING_ID_LISTS(ONE) LYNX_RT_SAMPLING_FIELDS_UNLIKE_C(ONE));
static_assert(num_fields<lynx_rt::EngineStats>() == LYNX_RT_STATS_FIELDS(ONE) LYNX_RT_STATS_PARTS(ONE));
static_assert(num_fields<lynx_rt::EngineStats::Layer>() == LYNX_RT_LAYER_STATS_FIELDS(ONE));
static_assert(num_fields<lynx_rt::EngineStats::Op>() == LYNX_RT_OP_STATS_FIELDS(ONE));
static_assert(num_fields<lynx_rt::EngineStats::Slo>() == LYNX_RT_SLO_STATS_FIELDS(ONE) LYNX_RT_SLO_STATS_PARTS(ONE));
static_assert(num_fields<lynx_rt::ModelInfo>() == LYNX_RT_MODEL_SHAPE_FIELDS(ONE) LYNX_RT_MODEL_SIZE_FIELDS(ONE)
              LYNX_RT_MODEL_TEXT_FIELDS(ONE) LYNX_RT_MODEL_OTHER_FIELDS(ONE));
#undef ONE
// clang-format on

using lynx_rt::SamplingParams;

Collected run(lynx_rt::Engine& engine, const SamplingParams& params) {
  Collected out;
  const auto flat = [](const std::vector<lynx_rt::TokenLogprobs>& tokens, std::vector<std::vector<float>>& to) {
    for (const auto& token : tokens) {
      auto& entries = to.emplace_back();
      for (const auto& e : token) entries.insert(entries.end(), {float(e.token_id), e.logprob, float(e.rank)});
    }
  };
  engine.add_request(kPrompt, params);
  while (engine.has_unfinished())
    for (const lynx_rt::StepOutput& o : engine.step()) {
      out.tokens.insert(out.tokens.end(), o.token_ids.begin(), o.token_ids.end());
      out.finish = lynx_rt_finish(o.finish_reason);
      out.stop_token_id = o.stop_token_id;
      flat(o.logprobs, out.logprobs);
      flat(o.prompt_logprobs, out.prompt_logprobs);
    }
  return out;
}

bool same(const Collected& a, const Collected& b) {
  return a.tokens == b.tokens && a.finish == b.finish && a.stop_token_id == b.stop_token_id && a.logprobs == b.logprobs &&
         a.prompt_logprobs == b.prompt_logprobs;
}

// Sets a field over both APIs: the results must be the same, and differ from those of the defaults.
class Twins {
 public:
  explicit Twins(const char* model) : c_(model) {
    lynx_rt::EngineOptions options;
    options.num_threads = 2;
    cpp_ = lynx_rt::Engine::create(model, options);
    c_params_ = with_max_tokens(8);
    cpp_params_.temperature = 0;
    cpp_params_.max_tokens = 8;
    cpp_params_.ignore_eos = true;
    check("nothing", [](auto&) {}, [](auto&) {}, false);
  }

  Collected check(const char* name, const std::function<void(lynx_rt_params&)>& set_c,
                  const std::function<void(SamplingParams&)>& set_cpp, bool differs = true) {
    lynx_rt_params c = c_params_;
    SamplingParams cpp = cpp_params_;
    set_c(c);
    set_cpp(cpp);
    const Collected got = ::run(c_, c);
    const bool ok = same(got, run(*cpp_, cpp)) && same(got, base_) != differs;
    if (!ok && !base_.tokens.empty()) std::cerr << name << ":\n";
    CHECK(ok || base_.tokens.empty());
    if (base_.tokens.empty()) base_ = got;
    return got;
  }

  // Makes these parameters the base of later comparisons.
  void rebase(const std::function<void(lynx_rt_params&)>& set_c, const std::function<void(SamplingParams&)>& set_cpp) {
    base_ = check("a new base", set_c, set_cpp);
    set_c(c_params_);
    set_cpp(cpp_params_);
  }

  const Collected& base() const { return base_; }
  lynx_rt_engine* c() const { return c_; }

 private:
  OwnedEngine c_;
  std::unique_ptr<lynx_rt::Engine> cpp_;
  lynx_rt_params c_params_{};
  SamplingParams cpp_params_;
  Collected base_;
};

void test_constraints(Twins& twins) {
  const std::vector<int32_t> greedy = twins.base().tokens;
  CHECK_EQ(greedy.size(), 8);
  const std::vector<int32_t> stops = {4000, greedy[2]}, allowed = {50, 60}, forced = {7, 8, 9};
  Collected got = twins.check(
      "stop_token_ids", [&](auto& p) { p.stop_token_ids = stops.data(), p.num_stop_token_ids = 2; },
      [&](auto& p) { p.stop_token_ids = stops; });
  CHECK_EQ(int(got.finish), int(LYNX_RT_STOP));
  CHECK_EQ(got.stop_token_id, greedy[2]);
  CHECK_EQ(got.tokens.back(), greedy[2]);
  got = twins.check(
      "min_tokens", [&](auto& p) { p.stop_token_ids = stops.data(), p.num_stop_token_ids = 2, p.min_tokens = 6; },
      [&](auto& p) { p.stop_token_ids = stops, p.min_tokens = 6; });
  CHECK(got.tokens.size() >= 6);
  got = twins.check(
      "allowed_token_ids", [&](auto& p) { p.allowed_token_ids = allowed.data(), p.num_allowed_token_ids = 2; },
      [&](auto& p) { p.allowed_token_ids = allowed; });
  for (int32_t token : got.tokens) CHECK(token == 50 || token == 60);
  got = twins.check(
      "forced_token_ids", [&](auto& p) { p.forced_token_ids = forced.data(), p.num_forced_token_ids = 3; },
      [&](auto& p) { p.forced_token_ids = forced; });
  CHECK_EQ(got.tokens, forced);

  const lynx_rt_token_bias bias[] = {{33, 100.f}, {34, 1.f}};
  got = twins.check(
      "logit_bias", [&](auto& p) { p.logit_bias = bias, p.num_logit_bias = 2; },
      [&](auto& p) { p.logit_bias = {{33, 100.f}, {34, 1.f}}; });
  CHECK_EQ(got.tokens, std::vector<int32_t>(8, 33));
  const lynx_rt_token_list words[] = {{&greedy[0], 2}, {&greedy[3], 1}};
  got = twins.check(
      "bad_words", [&](auto& p) { p.bad_words = words, p.num_bad_words = 2; },
      [&](auto& p) { p.bad_words = {{greedy[0], greedy[1]}, {greedy[3]}}; });
  CHECK(got.tokens[0] == greedy[0] && got.tokens[1] != greedy[1]);
}

void test_logprobs(Twins& twins) {
  Collected got = twins.check("logprobs = 0", [](auto& p) { p.has_logprobs = 1; }, [](auto& p) { p.logprobs = 0; });
  CHECK_EQ(got.tokens, twins.base().tokens);
  CHECK_EQ(got.logprobs.size(), 8);
  for (size_t i = 0; i < 8; ++i) {
    CHECK_EQ(got.logprobs[i].size(), 3);
    CHECK_EQ(got.logprobs[i][0], float(got.tokens[i]));
    CHECK(got.logprobs[i][1] < 0 && got.logprobs[i][2] == 1);
  }
  got = twins.check("logprobs", [](auto& p) { p.has_logprobs = 1, p.logprobs = 5; }, [](auto& p) { p.logprobs = 5; });
  CHECK_EQ(got.logprobs[0].size(), 3 * 5);
  twins.check("logprobs without has_logprobs", [](auto& p) { p.logprobs = 5; }, [](auto&) {}, false);
  got = twins.check(
      "prompt_logprobs", [](auto& p) { p.has_prompt_logprobs = 1, p.prompt_logprobs = 2; },
      [](auto& p) { p.prompt_logprobs = 2; });
  CHECK_EQ(got.prompt_logprobs.size(), kPrompt.size());
  CHECK_EQ(got.prompt_logprobs[0].size(), 0);
  CHECK_EQ(got.prompt_logprobs[1][0], float(kPrompt[1]));
}

void test_penalties_and_draws(Twins& twins) {
  twins.check("repetition_penalty", [](auto& p) { p.repetition_penalty = 9; }, [](auto& p) { p.repetition_penalty = 9; });
  twins.rebase([](auto& p) { p.temperature = 1.5f, p.has_seed = 1, p.seed = 11, p.max_tokens = 40; },
               [](auto& p) { p.temperature = 1.5f, p.seed = 11, p.max_tokens = 40; });
  twins.check("min_p", [](auto& p) { p.min_p = 0.5f; }, [](auto& p) { p.min_p = 0.5f; });
  twins.check("top_p", [](auto& p) { p.top_p = 0.5f; }, [](auto& p) { p.top_p = 0.5f; });
  twins.check("top_k", [](auto& p) { p.top_k = 2; }, [](auto& p) { p.top_k = 2; });
  twins.check("seed 0", [](auto& p) { p.seed = 0; }, [](auto& p) { p.seed = 0; });
  // The bias chooses one token, which the penalties undo.
  static const lynx_rt_token_bias bias{33, 12.f};  // the new base keeps its address
  twins.rebase([&](auto& p) { p.logit_bias = &bias, p.num_logit_bias = 1; }, [](auto& p) { p.logit_bias = {{33, 12.f}}; });
  twins.check("presence_penalty", [](auto& p) { p.presence_penalty = 2; }, [](auto& p) { p.presence_penalty = 2; });
  twins.check("frequency_penalty", [](auto& p) { p.frequency_penalty = 2; }, [](auto& p) { p.frequency_penalty = 2; });
}

// Fields that change when and where a request runs, not what it says.
void test_request_control(const char* model, Twins& twins) {
  const auto control = [](auto& p) {
    p.priority = -3, p.timeout = 1e6, p.cache_salt = "salt", p.isolation_group = "group", p.report_progress = 1;
  };
  twins.check("priority, timeout, cache_salt, isolation_group, report_progress", control, control, false);

  lynx_rt_options options = sized_options();
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = 16;
  options.max_num_queued_tokens = 60;
  const OwnedEngine engine(model, options);
  CHECK_EQ(lynx_rt_last_step_time(engine), 0);
  const std::vector<int32_t> prompt(40, 7);
  lynx_rt_params params = with_max_tokens(1);
  const uint64_t late = add(engine, params, std::vector<int32_t>(4, 7));
  params.priority = -1;
  params.cache_salt = "salt";
  params.report_progress = 1;
  const uint64_t early = add(engine, params, prompt);
  params.timeout = 1e-9;
  const uint64_t over = add(engine, params, std::vector<int32_t>(16, 7));
  uint64_t refused = 0;
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt.data(), 1, &params, &refused)), int(LYNX_RT_QUEUE_FULL));
  CHECK(last_error_has("60") && last_error_has("the 1 of"));
  std::vector<uint64_t> requests;
  std::vector<int64_t> computed, tokens;
  while (lynx_rt_has_unfinished(engine))
    CHECK_OK(step(engine, [&](const lynx_rt_output& o) {
      CHECK_EQ(o.finish == LYNX_RT_TIMEOUT, o.request_id == over);
      CHECK_EQ(std::string(o.error).find("timeout: ") == 0, o.request_id == over);
      requests.push_back(o.request_id);
      computed.push_back(o.num_computed_prompt_tokens);
      tokens.push_back(int64_t(o.num_tokens));
    }));
  CHECK_EQ(requests, (std::vector<uint64_t>{over, early, early, early, late}));
  CHECK_EQ(computed, (std::vector<int64_t>{0, 16, 32, 40, 4}));
  CHECK_EQ(tokens, (std::vector<int64_t>{0, 0, 0, 1, 1}));
  params.timeout = 0;
  CHECK_EQ(run(engine, params, prompt).num_cached_tokens, 32);
  params.cache_salt = "pepper";
  CHECK_EQ(run(engine, params, prompt).num_cached_tokens, 0);
  CHECK(lynx_rt_last_step_time(engine) > 0 && lynx_rt_step_start_time(engine) == 0);
  CHECK_EQ(lynx_rt_last_step_time(nullptr), 0);
  CHECK_EQ(lynx_rt_step_start_time(nullptr), 0);
  const lynx_rt_stats* stats = lynx_rt_get_stats(engine);
  CHECK_EQ(stats->bytes_read_experts + stats->bytes_read_dense + stats->bytes_read_kv, stats->bytes_read);
  CHECK(stats->bytes_read_kv > 0);
  lynx_rt_free_stats(stats);
}

// A wrong value of each field is refused by the field's name, and so is a missing array.
void test_refusals(lynx_rt_engine* engine) {
  const auto refused = [&](const char* field, const std::function<void(lynx_rt_params&)>& set) {
    lynx_rt_params params = with_max_tokens(8);
    set(params);
    uint64_t id = 0;
    CHECK_EQ(int(lynx_rt_add_request(engine, kPrompt.data(), 3, &params, &id)), int(LYNX_RT_INVALID_ARGUMENT));
    CHECK_EQ(std::string(lynx_rt_last_error_field()), field);
  };
  const int32_t outside = 4096;
  const lynx_rt_token_bias bias{-1, 1.f};
  const lynx_rt_token_list missing{nullptr, 3}, empty{&outside, 0};
  refused("temperature", [](auto& p) { p.temperature = -1; });
  refused("top_p", [](auto& p) { p.top_p = 2; });
  refused("top_k", [](auto& p) { p.top_k = -2; });
  refused("min_p", [](auto& p) { p.min_p = 2; });
  refused("presence_penalty", [](auto& p) { p.presence_penalty = 3; });
  refused("frequency_penalty", [](auto& p) { p.frequency_penalty = 3; });
  refused("repetition_penalty", [](auto& p) { p.repetition_penalty = -1; });
  refused("max_tokens", [](auto& p) { p.max_tokens = -1; });
  refused("min_tokens", [](auto& p) { p.min_tokens = 9; });
  refused("logprobs", [](auto& p) { p.has_logprobs = 1, p.logprobs = -1; });
  refused("prompt_logprobs", [](auto& p) { p.has_prompt_logprobs = 1, p.prompt_logprobs = 5000; });
  refused("stop_token_ids", [&](auto& p) { p.stop_token_ids = &outside, p.num_stop_token_ids = 1; });
  refused("stop_token_ids", [](auto& p) { p.num_stop_token_ids = 1; });
  refused("allowed_token_ids", [&](auto& p) { p.allowed_token_ids = &outside, p.num_allowed_token_ids = 1; });
  refused("allowed_token_ids", [](auto& p) { p.num_allowed_token_ids = 1; });
  refused("forced_token_ids", [&](auto& p) { p.forced_token_ids = &outside, p.num_forced_token_ids = 1; });
  refused("forced_token_ids", [](auto& p) { p.num_forced_token_ids = 1; });
  refused("logit_bias", [&](auto& p) { p.logit_bias = &bias, p.num_logit_bias = 1; });
  refused("logit_bias", [](auto& p) { p.num_logit_bias = 1; });
  refused("bad_words", [&](auto& p) { p.bad_words = &missing, p.num_bad_words = 1; });
  refused("bad_words", [&](auto& p) { p.bad_words = &empty, p.num_bad_words = 1; });
  refused("bad_words", [](auto& p) { p.num_bad_words = 1; });
  refused("timeout", [](auto& p) { p.timeout = -1; });
  const std::string long_name(1025, 'x');
  refused("cache_salt", [&](auto& p) { p.cache_salt = long_name.c_str(); });
  refused("isolation_group", [&](auto& p) { p.isolation_group = long_name.c_str(); });

  // Arrays of images, and images for a model that reads text alone.
  const float patch = 1;
  const auto with_image = [&](const lynx_rt_image* image, const char* said) {
    const lynx_rt_params params = with_max_tokens(8);
    uint64_t id = 0;
    const int status = int(lynx_rt_add_request_with_images(engine, kPrompt.data(), 3, image, 1, &params, &id));
    CHECK_EQ(std::string(lynx_rt_last_error_field()), "images");
    CHECK(last_error_has(said));
    return status;
  };
  lynx_rt_image image{0, 1, 1, nullptr, 1, "d", 1};
  CHECK_EQ(with_image(nullptr, "expected 1 values, got NULL"), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(with_image(&image, "got NULL"), int(LYNX_RT_INVALID_ARGUMENT));
  image.patches = &patch, image.digest = nullptr;
  CHECK_EQ(with_image(&image, "got NULL"), int(LYNX_RT_INVALID_ARGUMENT));
  image.digest = "d";
  CHECK_EQ(with_image(&image, "reads text alone"), int(LYNX_RT_UNSUPPORTED));
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  Twins twins(argv[1]);
  test_constraints(twins);
  test_logprobs(twins);
  test_penalties_and_draws(twins);
  test_request_control(argv[1], twins);
  test_refusals(twins.c());
  return check::result("test_c_api_params");
}
