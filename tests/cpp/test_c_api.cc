// csrc/include/lynx_rt/lynx_rt.h: statuses, messages, structs of other sizes, and calls from the callback.
// Usage: test_c_api MODEL_FOLDER
#include <cstring>

#include "check.h"
#include "lynx_rt/lynx_rt.h"
#include "lynx_rt/version.h"

namespace {

struct Collected {
  lynx_rt_engine* engine = nullptr;
  std::vector<int32_t> tokens;
  lynx_rt_finish finish = LYNX_RT_RUNNING;
  uint64_t abort_id = 0;  // aborted from the callback; 0 = none
};

void collect(const lynx_rt_output* output, void* user) {
  auto& to = *static_cast<Collected*>(user);
  to.tokens.insert(to.tokens.end(), output->token_ids, output->token_ids + output->num_tokens);
  to.finish = output->finish;
  if (to.abort_id) CHECK_EQ(int(lynx_rt_abort(to.engine, to.abort_id)), int(LYNX_RT_OK));
  to.abort_id = 0;
}

bool last_error_has(const char* text) { return std::strstr(lynx_rt_last_error(), text) != nullptr; }

lynx_rt_params with_max_tokens(int32_t max_tokens) {
  lynx_rt_params params{};
  params.size = sizeof params;
  params.max_tokens = max_tokens;
  params.ignore_eos = 1;
  return params;
}

Collected run(lynx_rt_engine* engine, const lynx_rt_params& params) {
  const int32_t prompt[] = {1, 20, 21};
  uint64_t id = 0;
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 3, &params, &id)), int(LYNX_RT_OK));
  CHECK(id > 0);
  CHECK_EQ(lynx_rt_has_unfinished(engine), 1);
  Collected out{engine, {}, LYNX_RT_RUNNING, 0};
  while (lynx_rt_has_unfinished(engine)) CHECK_EQ(int(lynx_rt_step(engine, collect, &out)), int(LYNX_RT_OK));
  return out;
}

void test_generation(lynx_rt_engine* engine) {
  Collected greedy = run(engine, with_max_tokens(5));
  CHECK_EQ(greedy.tokens.size(), 5);
  CHECK_EQ(int(greedy.finish), int(LYNX_RT_LENGTH));
  lynx_rt_params params = with_max_tokens(5);
  params.exact = 1;
  CHECK_EQ(run(engine, params).tokens, greedy.tokens);
  params.temperature = 5;
  params.has_seed = 1;
  params.seed = 7;
  Collected sampled = run(engine, params);
  CHECK(sampled.tokens != greedy.tokens);
  CHECK_EQ(run(engine, params).tokens, sampled.tokens);
  params.top_k = 1;
  CHECK_EQ(run(engine, params).tokens, greedy.tokens);
}

void test_abort_from_the_callback(lynx_rt_engine* engine) {
  const int32_t prompt[] = {1, 20, 21};
  lynx_rt_params params = with_max_tokens(100);
  Collected out{engine, {}, LYNX_RT_RUNNING, 0};
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 3, &params, &out.abort_id)), int(LYNX_RT_OK));
  uint64_t id = out.abort_id;
  CHECK_EQ(int(lynx_rt_step(engine, collect, &out)), int(LYNX_RT_OK));
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);
  CHECK_EQ(int(lynx_rt_abort(engine, id)), int(LYNX_RT_NOT_FOUND));
  CHECK(last_error_has("unknown or finished"));
}

void test_errors(lynx_rt_engine* engine, const char* model) {
  const int32_t prompt[] = {1, -20};
  uint64_t id = 77;
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 2, nullptr, &id)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK(last_error_has("-20 at position 1"));
  CHECK_EQ(id, 77);
  CHECK_EQ(int(lynx_rt_add_request(engine, nullptr, 0, nullptr, &id)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(int(lynx_rt_add_request(engine, nullptr, 2, nullptr, &id)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 1, nullptr, nullptr)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(int(lynx_rt_add_request(nullptr, prompt, 1, nullptr, &id)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(int(lynx_rt_step(engine, nullptr, nullptr)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(int(lynx_rt_step(nullptr, collect, nullptr)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(lynx_rt_has_unfinished(nullptr), 0);
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);

  lynx_rt_params params = with_max_tokens(5);
  params.temperature = -1;
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 1, &params, &id)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK(last_error_has("temperature"));
  params.size = 0;
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 1, &params, &id)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK(last_error_has("sizeof(lynx_rt_params)"));

  CHECK(lynx_rt_create(nullptr, nullptr) == nullptr);
  CHECK(lynx_rt_create("/nowhere", nullptr) == nullptr);
  CHECK(last_error_has("/nowhere"));
  lynx_rt_options options{};
  options.size = sizeof options;
  options.expert_selection = "best";
  CHECK(lynx_rt_create(model, &options) == nullptr);
  CHECK(last_error_has("best"));
  options.expert_selection = nullptr;
  options.quantization = "int3";
  CHECK(lynx_rt_create(model, &options) == nullptr);
  CHECK(last_error_has("int3"));
  options.size = offsetof(lynx_rt_options, quantization);  // of a caller who does not know the field: not read
  lynx_rt_engine* unquantized = lynx_rt_create(model, &options);
  CHECK(unquantized != nullptr);
  lynx_rt_destroy(unquantized);
}

// A caller compiled against a header with fewer or more fields.
void test_struct_sizes(const char* model) {
  struct Longer {
    lynx_rt_options known;
    int64_t unknown[4];
  } longer{};
  longer.known.size = sizeof longer;
  longer.known.max_num_seqs = 4096;  // more than the default rows of a step: these follow
  longer.known.expert_selection = "lynx";
  longer.known.max_model_len = 64;
  lynx_rt_engine* engine = lynx_rt_create(model, &longer.known);
  CHECK(engine != nullptr);
  lynx_rt_params params = with_max_tokens(3);
  Collected full = run(engine, params);
  params.size = offsetof(lynx_rt_params, ignore_eos);
  params.temperature = 0;
  params.has_seed = 1;  // behind the cut: not read
  CHECK_EQ(run(engine, params).tokens, full.tokens);
  lynx_rt_destroy(engine);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  CHECK_EQ(std::string(lynx_rt_version()), LYNX_RT_VERSION);
  CHECK_EQ(std::string(lynx_rt_last_error()), "");
  lynx_rt_engine* engine = lynx_rt_create(argv[1], nullptr);
  CHECK(engine != nullptr);
  test_generation(engine);
  test_abort_from_the_callback(engine);
  test_errors(engine, argv[1]);
  lynx_rt_destroy(engine);
  lynx_rt_destroy(nullptr);
  test_struct_sizes(argv[1]);
  return check::result("test_c_api");
}
