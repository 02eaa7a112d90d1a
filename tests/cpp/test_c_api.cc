// Tests csrc/include/lynx_rt/lynx_rt.h: creation, options, statuses and messages, structs of other sizes, and the information about an
// engine. Usage: test_c_api MODEL_FOLDER
#include <cstddef>
#include <stdexcept>

#include "c_api_client.h"
#include "lynx_rt/version.h"
#include "temp_folder.h"

namespace {

void test_generation(lynx_rt_engine* engine) {
  const Collected greedy = run(engine, with_max_tokens(5));
  CHECK_EQ(greedy.tokens.size(), 5);
  CHECK_EQ(int(greedy.finish), int(LYNX_RT_LENGTH));
  CHECK_EQ(greedy.stop_token_id, -1);
  lynx_rt_params params = with_max_tokens(5);
  params.exact = 1;
  CHECK_EQ(run(engine, params).tokens, greedy.tokens);
  params.temperature = 5;
  params.has_seed = 1;
  params.seed = 7;
  const Collected sampled = run(engine, params);
  CHECK(sampled.tokens != greedy.tokens);
  CHECK_EQ(run(engine, params).tokens, sampled.tokens);
  params.top_k = 1;
  CHECK_EQ(run(engine, params).tokens, greedy.tokens);
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
  CHECK_EQ(int(lynx_rt_step(engine, nullptr, nullptr)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(lynx_rt_has_unfinished(engine), 0);

  lynx_rt_params params = with_max_tokens(5);
  params.temperature = -1;
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 1, &params, &id)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK(last_error_has("temperature"));
  CHECK_EQ(int(lynx_rt_last_status()), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(std::string(lynx_rt_last_error_field()), "temperature");
  params.size = 0;
  CHECK_EQ(int(lynx_rt_add_request(engine, prompt, 1, &params, &id)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK(last_error_has("sizeof(lynx_rt_params)"));

  CHECK(lynx_rt_create(nullptr, nullptr) == nullptr);
  CHECK_EQ(int(lynx_rt_last_status()), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK(lynx_rt_create("/nowhere", nullptr) == nullptr);
  CHECK(last_error_has("/nowhere"));
  CHECK_EQ(int(lynx_rt_last_status()), int(LYNX_RT_NOT_FOUND));
  lynx_rt_options options = sized_options();
  options.expert_selection = "best";
  CHECK(lynx_rt_create(model, &options) == nullptr);
  CHECK(last_error_has("best"));
}

// Every function reports a NULL engine.
void test_null_engine() {
  const int32_t token = 1;
  uint64_t id = 0;
  const OnOutput none = [](const lynx_rt_output&) {};
  for (lynx_rt_status status :
       {lynx_rt_add_request(nullptr, &token, 1, nullptr, &id), step(nullptr, none), lynx_rt_abort(nullptr, 1),
        lynx_rt_wait_for_work(nullptr, 0, nullptr), lynx_rt_wake(nullptr), lynx_rt_set_expert_selection(nullptr, "topk"),
        lynx_rt_reset_stats(nullptr), lynx_rt_check_integrity(nullptr), lynx_rt_close(nullptr)}) {
    CHECK_EQ(int(status), int(LYNX_RT_INVALID_ARGUMENT));
    CHECK_EQ(std::string(lynx_rt_last_error_field()), "engine");
  }
  CHECK(lynx_rt_expert_selection(nullptr) == nullptr);
  CHECK(lynx_rt_get_model_info(nullptr) == nullptr);
  CHECK(lynx_rt_get_stats(nullptr) == nullptr);
  CHECK_EQ(lynx_rt_has_unfinished(nullptr), 0);
  lynx_rt_free_stats(nullptr);
  lynx_rt_destroy(nullptr);
}

// A caller may have been compiled with a header with fewer or more fields.
void test_struct_sizes(const char* model) {
  struct Longer {
    lynx_rt_options known;
    int64_t unknown[4];
  } longer{};
  longer.known.size = sizeof longer;
  longer.known.max_num_seqs = 4096;  // more than the default max_num_batched_tokens, which is then raised
  longer.known.expert_selection = "lynx";
  longer.known.max_model_len = 64;
  OwnedEngine engine(model, longer.known);
  lynx_rt_params params = with_max_tokens(3);
  const Collected full = run(engine, params);
  params.size = offsetof(lynx_rt_params, ignore_eos);
  params.temperature = 0;
  params.has_seed = 1;  // after the end of the shorter struct: not read
  CHECK_EQ(run(engine, params).tokens, full.tokens);

  lynx_rt_options options = sized_options();
  options.quantization = "int3";
  CHECK(lynx_rt_create(model, &options) == nullptr);
  CHECK(last_error_has("int3"));
  options.size = offsetof(lynx_rt_options, quantization);
  OwnedEngine unquantized(model, options);
}

// Each option reaches the engine: the engine refuses a wrong value by the option's name, or does what the option says.
void test_options(const char* model) {
  const auto refused = [&](const char* field, const std::function<void(lynx_rt_options&)>& set) {
    lynx_rt_options options = sized_options();
    set(options);
    CHECK(lynx_rt_create(model, &options) == nullptr);
    CHECK_EQ(std::string(lynx_rt_last_error_field()), field);
    CHECK_EQ(int(lynx_rt_last_status()), int(LYNX_RT_INVALID_ARGUMENT));
  };
  refused("device", [](auto& o) { o.device = "tpu"; });
  refused("dtype", [](auto& o) { o.dtype = "int8"; });
  refused("load_format", [](auto& o) { o.load_format = "pickle"; });
  refused("isa", [](auto& o) { o.isa = "sse"; });
  refused("activations", [](auto& o) { o.activations = "int4"; });
  refused("max_model_len", [](auto& o) { o.max_model_len = -1; });
  refused("max_num_seqs", [](auto& o) { o.max_num_seqs = -1; });
  refused("max_num_batched_tokens", [](auto& o) { o.max_num_batched_tokens = 100; });  // fewer than the 128 sequences
  refused("max_num_queued_reqs", [](auto& o) { o.max_num_queued_reqs = -1; });
  refused("kv_cache_memory_bytes", [](auto& o) { o.kv_cache_memory_bytes = -1; });
  refused("block_size", [](auto& o) { o.block_size = -1; });
  refused("num_threads", [](auto& o) { o.num_threads = -1; });

  lynx_rt_options options = sized_options();
  options.block_size = 8;
  options.max_model_len = 64;
  options.max_num_seqs = 2;
  options.max_num_queued_reqs = 1;
  options.enable_return_routed_experts = 1;
  OwnedEngine defaults(model);
  options.kv_cache_memory_bytes = 10 * 8 * lynx_rt_get_model_info(defaults)->kv_bytes_per_token;
  std::vector<int32_t> prompt(17, 5);
  for (int disabled : {0, 1}) {
    options.disable_prefix_caching = options.disable_mixed_chunk = disabled;
    OwnedEngine engine(model, options);
    const lynx_rt_stats* stats = lynx_rt_get_stats(engine);
    CHECK_EQ(stats->kv_blocks_total, 10);
    lynx_rt_free_stats(stats);
    const Collected first = run(engine, with_max_tokens(2), prompt);
    CHECK_EQ(first.num_cached_tokens, 0);
    CHECK_EQ(first.num_routed_rows, 18);
    CHECK_EQ(first.num_routed_layers, lynx_rt_get_model_info(engine)->num_moe_layers);
    CHECK_EQ(first.num_routed_experts_per_tok, lynx_rt_get_model_info(engine)->num_experts_per_tok);
    CHECK_EQ(run(engine, with_max_tokens(2), prompt).num_cached_tokens, disabled ? 0 : 16);

    // With mixed chunks a new prompt and a decode row share a step.
    add(engine, with_max_tokens(8));
    CHECK_OK(step(engine, [](const lynx_rt_output&) {}));
    for (int i = 0; i < 2; ++i) add(engine, with_max_tokens(8));  // one runs, one waits in the queue
    uint64_t refused_id = 0;
    CHECK_EQ(int(lynx_rt_add_request(engine, kPrompt.data(), 3, nullptr, &refused_id)), int(LYNX_RT_QUEUE_FULL));
    int moved_on = 0;
    CHECK_OK(step(engine, [&](const lynx_rt_output&) { ++moved_on; }));
    CHECK_EQ(moved_on, disabled ? 1 : 2);
  }
  CHECK_EQ(run(defaults, with_max_tokens(2)).num_routed_rows, 0);

  lynx_rt_params drawn = with_max_tokens(8);
  drawn.temperature = 5;
  options = sized_options();
  std::vector<std::vector<int32_t>> tokens;
  for (uint64_t seed : {3, 3, 4}) {
    options.seed = seed;
    OwnedEngine engine(model, options);
    tokens.push_back(run(engine, drawn).tokens);
  }
  CHECK(tokens[0] == tokens[1] && tokens[0] != tokens[2]);
}

void test_model_info(const char* model) {
  lynx_rt_options options = sized_options();
  options.max_model_len = 100;
  options.dtype = "bfloat16";
  OwnedEngine engine(model, options);
  const lynx_rt_model_info* info = lynx_rt_get_model_info(engine);
  CHECK_EQ(std::string(info->dtype), "bfloat16");
  CHECK(std::string(info->device).find("cpu") != std::string::npos);
  CHECK(!std::string(info->model_type).empty());
  CHECK_EQ(info->max_model_len, 100);
  CHECK(info->max_position_embeddings > 100);
  CHECK_EQ(info->vocab_size, 4096);
  CHECK(info->num_experts > info->num_experts_per_tok && info->num_experts_per_tok > 0);
  CHECK(info->num_layers >= info->num_moe_layers && info->num_moe_layers > 0);
  CHECK_EQ(info->kv_bytes_per_token, 2 * info->num_layers * info->num_kv_heads * info->head_dim * 2);
  CHECK(info->kv_bytes % (16 * info->kv_bytes_per_token) == 0 && info->kv_bytes > 0);
  CHECK(info->weight_bytes > 0 && info->workspace_bytes > 0);
  CHECK(info->num_heads % info->num_kv_heads == 0 && info->hidden_size > 0 && info->moe_intermediate_size > 0);
  CHECK(info->num_eos_token_ids > 0 && info->eos_token_ids[0] >= 0 && info->eos_token_ids[0] < 4096);
  CHECK_OK(lynx_rt_close(engine));
  CHECK_EQ(std::string(lynx_rt_get_model_info(engine)->dtype), "bfloat16");
}

void test_stats_and_selection(const char* model) {
  OwnedEngine engine(model);
  CHECK_EQ(std::string(lynx_rt_expert_selection(engine)), "topk");
  CHECK_EQ(int(lynx_rt_set_expert_selection(engine, "oea:k0=99")), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(int(lynx_rt_set_expert_selection(engine, nullptr)), int(LYNX_RT_INVALID_ARGUMENT));
  CHECK_EQ(std::string(lynx_rt_expert_selection(engine)), "topk");
  CHECK_OK(lynx_rt_set_expert_selection(engine, "oea:k0=1"));
  CHECK(std::string(lynx_rt_expert_selection(engine)).starts_with("oea:k0=1"));

  for (int32_t i = 0; i < 4; ++i) add(engine, with_max_tokens(6), {1, 20 + i, 30 + i});
  CHECK_OK(step(engine, [](const lynx_rt_output&) {}));
  const lynx_rt_stats* running = lynx_rt_get_stats(engine);
  CHECK_EQ(running->num_running, 4);
  CHECK(running->kv_blocks_used >= 4 && running->kv_blocks_used < running->kv_blocks_total);
  while (lynx_rt_has_unfinished(engine)) CHECK_OK(step(engine, [](const lynx_rt_output&) {}));
  const lynx_rt_stats* stats = lynx_rt_get_stats(engine);
  CHECK_EQ(running->num_running, 4);  // a snapshot does not change
  CHECK_EQ(stats->num_running, 0);
  CHECK_EQ(stats->steps, 6);
  CHECK_EQ(stats->decode_steps, 5);
  CHECK_EQ(stats->decode_rows, 20);
  CHECK_EQ(stats->prompt_tokens, 12);
  CHECK_EQ(stats->generation_tokens, 24);
  CHECK_EQ(stats->finished, 4);
  CHECK(stats->step_seconds >= stats->decode_seconds && stats->decode_seconds > 0 && stats->bytes_read > 0);
  const lynx_rt_model_info* info = lynx_rt_get_model_info(engine);
  CHECK_EQ(stats->num_layers, info->num_moe_layers);
  for (size_t i = 0; i < stats->num_layers; ++i) {
    const lynx_rt_layer_stats& layer = *stats->layers[i];
    CHECK_EQ(layer.steps, 5);
    CHECK_EQ(layer.rows, 20);
    CHECK(layer.active <= layer.union_before && layer.active > 0);
    CHECK(layer.retained_mass > 0 && layer.retained_mass <= double(layer.rows) * (1 + 1e-9));
  }
  CHECK(stats->layers[0]->active < stats->layers[0]->union_before);
  CHECK(stats->num_ops > 0);
  int64_t bytes = 0;
  for (size_t i = 0; i < stats->num_ops; ++i) {
    CHECK(stats->ops[i]->name[0] != 0);
    bytes += stats->ops[i]->bytes;
  }
  CHECK_EQ(bytes, stats->bytes_read);
  CHECK_EQ(stats->num_slo_levels, 0);
  lynx_rt_free_stats(running);
  lynx_rt_free_stats(stats);

  CHECK_OK(lynx_rt_reset_stats(engine));
  CHECK_OK(lynx_rt_set_expert_selection(engine, "slo:tpot_ms=20"));
  stats = lynx_rt_get_stats(engine);
  CHECK_EQ(stats->generation_tokens, 0);
  CHECK_EQ(stats->slo_target_seconds, 0.02);
  CHECK(stats->num_slo_levels > 1 && stats->slo_levels[0]->selection[0] != 0);
  lynx_rt_free_stats(stats);
  CHECK_OK(lynx_rt_check_integrity(engine));
}

struct Progress {
  int64_t calls = 0, done = 0, total = 0, stop_after = -1;
  bool throws = false;
};

int on_progress(int64_t done, int64_t total, void* user) {
  auto& p = *static_cast<Progress*>(user);
  CHECK(done > 0 && done >= p.done && done <= total);
  p.done = done;
  p.total = total;
  if (p.throws) throw std::runtime_error("no more room");
  return ++p.calls != p.stop_after;
}

void test_load_progress(const char* model) {
  const TempFolder folder;
  const std::string cache = folder.path();
  lynx_rt_options options = sized_options();
  options.quantization = "int8";
  options.quantization_cache = cache.c_str();
  options.on_load_progress = on_progress;
  Progress cancelled, thrown, all;
  cancelled.stop_after = 2;
  options.load_progress_user = &cancelled;
  CHECK(lynx_rt_create(model, &options) == nullptr);
  CHECK_EQ(int(lynx_rt_last_status()), int(LYNX_RT_CANCELLED));
  CHECK_EQ(cancelled.calls, 2);
  thrown.throws = true;
  options.load_progress_user = &thrown;
  CHECK(lynx_rt_create(model, &options) == nullptr);
  CHECK_EQ(int(lynx_rt_last_status()), int(LYNX_RT_INTERNAL));
  CHECK(last_error_has("on_load_progress") && last_error_has("no more room"));
  CHECK(std::filesystem::is_empty(cache));  // an interrupted load leaves no file
  options.load_progress_user = &all;
  OwnedEngine engine(model, options);
  CHECK(!std::filesystem::is_empty(cache));
  CHECK_EQ(all.done, all.total);
  CHECK(all.calls > 2);
}

using Log = std::vector<std::pair<lynx_rt_log_level, std::string>>;

bool has(const Log& log, lynx_rt_log_level level, const char* text) {
  for (const auto& [l, line] : log)
    if (l == level && line.find(text) != std::string::npos && line.find('\n') == std::string::npos) return true;
  return false;
}

void test_log(const char* model) {
  Log log;
  lynx_rt_options options = sized_options();
  options.on_log = [](lynx_rt_log_level level, const char* text, void* user) {
    static_cast<Log*>(user)->emplace_back(level, text);
  };
  options.log_user = &log;
  options.block_size = 4;
  {
    OwnedEngine full(model, options);
    CHECK(has(log, LYNX_RT_LOG_INFO, "of KV cache"));
    CHECK(!has(log, LYNX_RT_LOG_WARNING, ""));
    options.kv_cache_memory_bytes = 4 * 4 * lynx_rt_get_model_info(full)->kv_bytes_per_token;
  }
  OwnedEngine engine(model, options);  // four pages of four tokens
  CHECK(has(log, LYNX_RT_LOG_WARNING, "max_model_len is 16"));
  CHECK_OK(lynx_rt_set_expert_selection(engine, "lynx"));
  CHECK(has(log, LYNX_RT_LOG_INFO, "lynx"));
  for (int i = 0; i < 2; ++i) add(engine, with_max_tokens(10));
  while (lynx_rt_has_unfinished(engine)) CHECK_OK(step(engine, [](const lynx_rt_output&) {}));
  CHECK(has(log, LYNX_RT_LOG_WARNING, "preempted"));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  CHECK_EQ(std::string(lynx_rt_version()), LYNX_RT_VERSION);
  CHECK_EQ(std::string(lynx_rt_last_error()), "");
  CHECK_EQ(std::string(lynx_rt_last_error_field()), "");
  CHECK_OK(lynx_rt_last_status());
  {
    OwnedEngine engine(argv[1]);
    test_generation(engine);
    test_errors(engine, argv[1]);
  }
  test_null_engine();
  test_struct_sizes(argv[1]);
  test_options(argv[1]);
  test_model_info(argv[1]);
  test_stats_and_selection(argv[1]);
  test_load_progress(argv[1]);
  test_log(argv[1]);
  return check::result("test_c_api");
}
