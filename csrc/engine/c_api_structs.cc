#include "engine/c_api_structs.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/error.h"
#include "engine/public_fields.h"

namespace lynx_rt {

namespace {

static_assert(LYNX_RT_INTERNAL == int(ErrorCode::kInternal) + 1 && LYNX_RT_QUEUE_FULL == int(ErrorCode::kQueueFull) + 1);
static_assert(LYNX_RT_TIMEOUT == int(FinishReason::kTimeout) && LYNX_RT_STOP == int(FinishReason::kStop));
static_assert(LYNX_RT_LOG_WARNING == int(LogLevel::kWarning));
// A struct that callers fill must not end in padding: callers need not zero it, and a field added later would lie there.
static_assert(offsetof(lynx_rt_options, language_model_only) + sizeof(int64_t) == sizeof(lynx_rt_options));
static_assert(offsetof(lynx_rt_params, isolation_group) + sizeof(char*) == sizeof(lynx_rt_params));

// Returns the caller's struct, cut or extended with zeros to the size that this library knows.
template <class Struct>
Struct read(const Struct* from, const char* name) {
  Struct out{};
  if (!from) return out;
  if (from->size < sizeof from->size) invalid(name, "size is not set: expected sizeof(lynx_rt_", name, "), got ", from->size);
  std::memcpy(&out, from, std::min(from->size, sizeof out));
  return out;
}

// Copies a field of the caller's struct; 0 means the default, which `to` holds already.
template <class To, class From>
void take(To& to, From from) {
  if (from) to = To(from);
}

int32_t at_least_zero(const char* field, int32_t value) {
  if (value < 0) invalid(field, "expected at least 0, got ", value);
  return value;
}

template <class T>
void checked(const char* field, const T* values, size_t count) {
  if (!values && count) invalid(field, "expected ", count, " values, got NULL");
}

std::vector<int32_t> to_ids(const char* field, const int32_t* ids, size_t count) {
  checked(field, ids, count);
  return {ids, ids + count};
}

}  // namespace

void call_back(const char* name, const std::function<void()>& call) {
  try {
    call();
#ifdef __GLIBCXX__
  } catch (const abi::__forced_unwind&) {  // pthread_exit in the callback: the thread must be allowed to end
    throw;
#endif
  } catch (const std::exception& e) {
    fail(ErrorCode::kInternal, name, name, ": it threw: ", e.what());
  } catch (...) {
    fail(ErrorCode::kInternal, name, name, ": it threw something that is no std::exception");
  }
}

EngineOptions to_options(const lynx_rt_options* from) {
  const lynx_rt_options given = read(from, "options");
  EngineOptions out;
#define LYNX_RT_FIELD(name) take(out.name, given.name);
  LYNX_RT_OPTION_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
  if (!given.max_num_batched_tokens) out.max_num_batched_tokens = std::max(out.max_num_batched_tokens, out.max_num_seqs);
  out.enable_prefix_caching = !given.disable_prefix_caching;
  out.enable_mixed_chunk = !given.disable_mixed_chunk;
  if (given.on_load_progress)
    out.on_load_progress = [call = given.on_load_progress, user = given.load_progress_user](int64_t done, int64_t total) {
      int goes_on = 0;
      call_back("on_load_progress", [&] { goes_on = call(done, total, user); });
      if (!goes_on) throw LoadCancelled();
    };
  if (given.on_log)
    out.on_log = [call = given.on_log, user = given.log_user](LogLevel level, const std::string& text) {
      call_back("on_log", [&] { call(lynx_rt_log_level(level), text.c_str(), user); });
    };
  return out;
}

SamplingParams to_params(const lynx_rt_params* from) {
  const lynx_rt_params given = read(from, "params");
  SamplingParams out;
#define LYNX_RT_FIELD(name) take(out.name, given.name);
  LYNX_RT_SAMPLING_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
#define LYNX_RT_FIELD(name) out.name = to_ids(#name, given.name, given.num_##name);
  LYNX_RT_SAMPLING_ID_LISTS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
  out.temperature = given.temperature;
  if (given.has_seed) out.seed = given.seed;
  if (given.has_logprobs) out.logprobs = at_least_zero("logprobs", given.logprobs);
  if (given.has_prompt_logprobs) out.prompt_logprobs = at_least_zero("prompt_logprobs", given.prompt_logprobs);
  checked("logit_bias", given.logit_bias, given.num_logit_bias);
  for (size_t i = 0; i < given.num_logit_bias; ++i)
    out.logit_bias.emplace_back(given.logit_bias[i].token_id, given.logit_bias[i].bias);
  checked("bad_words", given.bad_words, given.num_bad_words);
  for (size_t i = 0; i < given.num_bad_words; ++i)
    out.bad_words.push_back(to_ids("bad_words", given.bad_words[i].token_ids, given.bad_words[i].num_tokens));
  return out;
}

std::vector<ImageInput> to_images(const lynx_rt_image* from, size_t count) {
  checked("images", from, count);
  std::vector<ImageInput> out(count);
  for (size_t i = 0; i < count; ++i) {
    checked("images", from[i].patches, from[i].num_values);
    checked("images", from[i].digest, from[i].digest_size);
    out[i].position = from[i].position;
    out[i].grid_height = from[i].grid_height;
    out[i].grid_width = from[i].grid_width;
    out[i].patches.assign(from[i].patches, from[i].patches + from[i].num_values);
    out[i].digest.assign(from[i].digest, from[i].digest_size);
  }
  return out;
}

OutputView::OutputView(const StepOutput& from) {
  size_t num_entries = 0;
  for (const auto* tokens : {&from.logprobs, &from.prompt_logprobs})
    for (const TokenLogprobs& token : *tokens) num_entries += token.size();
  entries_.reserve(num_entries);  // pointers into both vectors must stay valid
  lists_.reserve(from.logprobs.size() + from.prompt_logprobs.size());

  view_.request_id = from.request_id;
  view_.token_ids = from.token_ids.data();
  view_.num_tokens = from.token_ids.size();
  view_.finish = lynx_rt_finish(from.finish_reason);
  view_.error = from.error.c_str();
  view_.stop_token_id = from.stop_token_id;
  view_.num_preemptions = int32_t(from.num_preemptions);
  view_.logprobs = add(from.logprobs);
  view_.num_logprobs = from.logprobs.size();
  view_.prompt_logprobs = add(from.prompt_logprobs);
  view_.num_prompt_logprobs = from.prompt_logprobs.size();
  view_.num_cached_tokens = from.num_cached_tokens;
  view_.num_computed_prompt_tokens = from.num_computed_prompt_tokens;
  view_.arrival_time = from.arrival_time;
  view_.first_scheduled_time = from.first_scheduled_time;
  view_.first_token_time = from.first_token_time;
  view_.finish_time = from.finish_time;
  if (const RoutedExperts& r = from.routed_experts; r.num_layers) {
    view_.routed_experts = r.ids.data();
    view_.num_routed_rows = r.num_rows;
    view_.num_routed_layers = r.num_layers;
    view_.num_routed_experts_per_tok = r.num_experts_per_tok;
  }
}

const lynx_rt_logprobs* OutputView::add(const std::vector<TokenLogprobs>& tokens) {
  const lynx_rt_logprobs* first = lists_.data() + lists_.size();
  for (const TokenLogprobs& token : tokens) {
    lists_.push_back({entries_.data() + entries_.size(), token.size()});
    for (const TokenLogprob& t : token) entries_.push_back({t.token_id, t.logprob, t.rank});
  }
  return tokens.empty() ? nullptr : first;
}

ModelInfoView::ModelInfoView(ModelInfo info) : info_(std::move(info)) {
#define LYNX_RT_FIELD(name) view_.name = info_.name;
  LYNX_RT_MODEL_SHAPE_FIELDS(LYNX_RT_FIELD)
  LYNX_RT_MODEL_SIZE_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
#define LYNX_RT_FIELD(name) view_.name = info_.name.c_str();
  LYNX_RT_MODEL_TEXT_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
  view_.eos_token_ids = info_.eos_token_ids.data();
  view_.num_eos_token_ids = info_.eos_token_ids.size();
}

namespace {

// lynx_rt_stats is the base, so that a pointer to it can be cast back to the whole.
struct OwnedStats : lynx_rt_stats {
  EngineStats from;
  std::vector<lynx_rt_layer_stats> layer_values;
  std::vector<lynx_rt_op_stats> op_values;
  std::vector<lynx_rt_slo_level> level_values;
  std::vector<const lynx_rt_layer_stats*> layer_list;
  std::vector<const lynx_rt_op_stats*> op_list;
  std::vector<const lynx_rt_slo_level*> level_list;
};

template <class T>
std::vector<const T*> pointers(const std::vector<T>& values) {
  std::vector<const T*> out;
  for (const T& v : values) out.push_back(&v);
  return out;
}

}  // namespace

const lynx_rt_stats* make_stats(EngineStats stats) {
  auto out = std::make_unique<OwnedStats>();
  out->from = std::move(stats);
  const EngineStats& from = out->from;
#define LYNX_RT_FIELD(name) out->name = from.name;
  LYNX_RT_STATS_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
  for (const EngineStats::Layer& layer_stats : from.layers) {
    lynx_rt_layer_stats& to = out->layer_values.emplace_back();
#define LYNX_RT_FIELD(name) to.name = layer_stats.name;
    LYNX_RT_LAYER_STATS_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
  }
  for (const EngineStats::Op& o : from.ops) out->op_values.push_back({o.name.c_str(), o.calls, o.seconds, o.bytes});
  for (const auto& [selection, steps] : from.slo.levels) out->level_values.push_back({selection.c_str(), steps});
  out->layer_list = pointers(out->layer_values);
  out->op_list = pointers(out->op_values);
  out->level_list = pointers(out->level_values);
  out->layers = out->layer_list.data();
  out->num_layers = out->layer_list.size();
  out->ops = out->op_list.data();
  out->num_ops = out->op_list.size();
#define LYNX_RT_FIELD(name) out->slo_##name = from.slo.name;
  LYNX_RT_SLO_STATS_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
#define LYNX_RT_FIELD(name) out->tier_##name = from.tier.name;
  LYNX_RT_TIER_STATS_FIELDS(LYNX_RT_FIELD)
#undef LYNX_RT_FIELD
  out->slo_levels = out->level_list.data();
  out->num_slo_levels = out->level_list.size();
  return out.release();
}

void free_stats(const lynx_rt_stats* stats) { delete static_cast<const OwnedStats*>(stats); }

}  // namespace lynx_rt
