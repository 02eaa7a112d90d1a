// A step is schedule -> run -> postprocess.
#include "engine/engine_core.h"

#include <algorithm>
#include <cctype>

#include "base/clock.h"
#include "base/error.h"
#include "engine/expert_memory.h"
#include "model/family.h"
#include "model/load_weights.h"
#include "model/sequence_memory.h"
#include "model/tiered_weights.h"

namespace lynx_rt {

namespace {

DType compute_dtype(const std::string& name, const ModelConfig& config) {
  if (name == "auto") return config.dtype;
  for (DType t : {DType::kF32, DType::kBF16, DType::kF16})
    if (name == dtype_name(t)) return t;
  invalid("dtype", "expected auto, float32, bfloat16 or float16, got \"", name, "\"");
}

const EngineOptions& checked(const EngineOptions& o) {
  auto at_least = [](const char* field, int64_t v, int64_t min) {
    if (v < min) invalid(field, "expected at least ", min, ", got ", v);
  };
  at_least("max_model_len", o.max_model_len, 0);
  at_least("max_num_seqs", o.max_num_seqs, 1);
  at_least("max_num_queued_reqs", o.max_num_queued_reqs, 0);
  at_least("max_num_queued_tokens", o.max_num_queued_tokens, 0);
  at_least("kv_cache_memory_bytes", o.kv_cache_memory_bytes, 0);
  at_least("encoder_cache_memory_bytes", o.encoder_cache_memory_bytes, 0);
  at_least("block_size", o.block_size, 1);
  at_least("num_threads", o.num_threads, 0);
  if (!(o.io_timeout_s >= 0)) invalid("io_timeout_s", "expected seconds, or 0 for no limit, got ", shortest(o.io_timeout_s));
  if (o.max_num_seqs > 65536) invalid("max_num_seqs", "expected at most 65536, got ", o.max_num_seqs);
  if (o.block_size > 4096) invalid("block_size", "expected at most 4096, got ", o.block_size);
  if (o.max_num_batched_tokens > (1 << 20))
    invalid("max_num_batched_tokens", "expected at most 1048576, got ", o.max_num_batched_tokens);
  if (o.max_num_batched_tokens < o.max_num_seqs)
    invalid("max_num_batched_tokens", "expected at least max_num_seqs (", o.max_num_seqs, "), got ", o.max_num_batched_tokens);
  if (!o.memory.empty()) parse_total(o.memory, 0);
  return o;
}

ModelConfig model_config(const std::string& path, const EngineOptions& o) {
  ModelConfig config = read_model_config(path);
  if (o.language_model_only) {
    config.vision.reset();
    config.image_token_id = -1;
  }
  return config;
}

bool is_dummy(const EngineOptions& o) {
  if (o.load_format != "auto" && o.load_format != "safetensors" && o.load_format != "dummy")
    invalid("load_format", "expected \"auto\", \"safetensors\" or \"dummy\", got \"", o.load_format, "\"");
  return o.load_format == "dummy";
}

// Returns the file that stores the quantised weights of a checkpoint; "" where none is requested.
std::string quantization_file(const EngineOptions& o, const ModelConfig& config, const Checkpoint& checkpoint) {
  if (o.quantization_cache.empty()) return "";
  const bool repacked = !config.quantization.empty() && o.quantization != kDequantize;
  if (parse_quantization(o.quantization) == QuantFormat::kPlain && !repacked) {
    if (makes_expert_file(o, config)) return "";
    invalid("quantization_cache", "expected none without quantization, got \"", o.quantization_cache, "\"");
  }
  if (is_dummy(o)) invalid("quantization_cache", "expected none with load_format=\"dummy\", got \"", o.quantization_cache, "\"");
  const bool experts = o.expert_file.empty() && !makes_expert_file(o, config);  // are among the file's weights
  return cached_file(o, config, checkpoint, experts ? ".v4.bin" : "-without-experts.v4.bin");
}

BackendOptions backend_options(const EngineOptions& o, const ModelConfig& config, const Checkpoint& checkpoint) {
  BackendOptions b;
  b.device = o.device;
  b.compute_dtype = compute_dtype(o.dtype, config);
  b.num_threads = o.num_threads;
  b.isa = o.isa;
  b.dependent_launch = !o.disable_dependent_launch;
  b.quantization = parse_quantization(o.quantization);
  b.int8_activations = parse_activations(o.activations);
  b.quantization_cache = quantization_file(o, config, checkpoint);
  return b;
}

}  // namespace

EngineCore::EngineCore(const std::string& path, const EngineOptions& o)
    : options_(checked(o)),
      config_(model_config(path, options_)),
      checkpoint_(is_dummy(o) ? Checkpoint() : Checkpoint::open(path)),
      backend_(make_backend(backend_options(o, config_, checkpoint_))),
      expert_file_(open_expert_file(path, o, config_, checkpoint_, backend_->host_memory())),
      weights_(load_weights()),
      store_(make_store()),
      prefetch_(make_prefetch()),
      decoder_(*backend_, config_, *weights_, o.max_num_batched_tokens, max_logit_rows(o),
               o.max_model_len ? std::min(o.max_model_len, config_.max_position_embeddings) : config_.max_position_embeddings,
               step_recording(o), store_.get(), prefetch_.get()),
      encoder_(make_encoder()),
      logits_(*backend_, checked_mul(decoder_.max_logit_rows(), config_.vocab_size, "logits"), "logits"),
      plan_(plan_memory(config_, backend_->compute_dtype(), options_, memory_budget(),
                        StateCache::slot_bytes(state_bytes(config_, backend_->compute_dtype())))),
      cache_(*backend_, config_, plan_.groups, plan_.group_blocks, o.block_size),
      pool_(plan_.num_blocks, o.block_size, o.enable_prefix_caching),
      windows_(plan_.groups, plan_.group_blocks, o.block_size, o.enable_prefix_caching),
      states_(*backend_, state_bytes(config_, backend_->compute_dtype()), plan_.num_state_slots),
      scheduler_(pool_, windows_, states_, plan_.max_num_seqs, o.max_num_batched_tokens,
                 o.enable_mixed_chunk && !store_ && !tiered_, parse_admission(o.admission), encoder_.get()),
      batch_(decoder_.first_image_rope_row(), encoder_ ? config_.vision->out_columns() : 0),
      sampler_(config_.vocab_size),
      virtual_cache_(make_virtual_cache()),
      selection_(*backend_, config_, options_, o.expert_selection, store_ || virtual_cache_ || tiered_),
      layer_stats_(size_t(decoder_.num_moe_layers())),
      routed_experts_(plan_.num_blocks, o.block_size, decoder_.num_moe_layers(), config_.num_experts_per_tok) {
  if (records_routed_experts() && config_.num_experts > INT16_MAX)
    fail(ErrorCode::kUnsupported, "enable_return_routed_experts", "enable_return_routed_experts: expected at most ", INT16_MAX,
         " experts, got ", config_.num_experts);
  check_files();
  decoder_.set_cache(virtual_cache_.get());
  options_.max_num_seqs = plan_.max_num_seqs;
  options_.on_load_progress = nullptr;  // it may refer to objects that the caller need not keep any longer
  reset_stats();
}

std::unique_ptr<const ModelWeights> EngineCore::load_weights() {
  const bool copied = !backend_->host_memory(), quantized = parse_quantization(options_.quantization) != QuantFormat::kPlain;
  auto loaded = std::make_unique<ModelWeights>();
  ModelWeights& weights = *loaded;
  TakesBlocks takes;  // empty where nothing may stay in blocks, so that loading does not look for them
  if (options_.quantization != kDequantize)
    takes = [this](WeightUse use, const BlockRows& rows) {
      return stays_in_blocks(rows, options_.quantization) && backend_->takes_blocks(use, rows);
    };
  if (is_dummy(options_)) {
    load_dummy_weights(config_, copied, weights, takes);
  } else {
    lynx_rt::load_weights(config_, checkpoint_, weights, ReadCopies::kWhenPlaced, takes);
  }
  if (expert_file_) bind_expert_file(weights);
  if (!options_.memory.empty() && !expert_file_) divide_memory(weights, 0);
  weight_bytes_ = weight_bytes(weights);
  if (copied) {
    const int64_t free = backend_->memory_budget().free;
    if (options_.expert_memory.empty() && weight_bytes_ > free)
      fail(ErrorCode::kOutOfMemory, "device", "device: the weights take ", weight_bytes_, " bytes, but ", free, " are free on ",
           backend_->description(), "; use a larger device, or device=\"cpu\"");
    if (!options_.expert_memory.empty()) tier_experts(weights);
    place_weights(*backend_, weights, options_.on_load_progress);
    copied_weight_bytes_ = weights.copies.bytes_read();
    weights.owned.clear();
    weights.copies = {};
    checkpoint_ = Checkpoint();
  } else if (quantized || weights.copies.bytes() > 0) {
    if (!quantized && backend_->reads_products() && !expert_file_) weights.copies.check_memory();
    place_weights(*backend_, weights, options_.on_load_progress);
    weight_bytes_ = weight_bytes(weights);
    copied_weight_bytes_ = weights.copies.bytes_read();
    checkpoint_.drop_pages();
  }
  if (expert_memory_ > 0) {
    copied_weight_bytes_ +=
        copy_to_memory(weights, [this](const void* data) { return checkpoint_.contains(data) || backend_->is_mapped(data); });
    checkpoint_ = Checkpoint();
    weight_bytes_ += expert_memory_;
  } else if (mapped_experts_) {
    weight_bytes_ += mapped_experts_->size();
  }
  return loaded;
}

void EngineCore::check_files() {
  constexpr double kSeconds = 0.25;  // stat() of a hundred files takes 0.1 ms
  if (files_error_) throw Error(*files_error_);
  if (now() - files_checked_ < kSeconds) return;
  try {
    checkpoint_.check_unchanged();
    backend_->check_files();
    if (mapped_experts_) mapped_experts_->check_unchanged();
    if (store_) store_->check_unchanged();
  } catch (const Error& e) {
    files_error_ = e;
    throw;
  }
  files_checked_ = now();
}

bool EngineCore::abort(uint64_t id) {
  if (!scheduler_.remove(id)) return false;
  ++counters_.aborted;
  return true;
}

bool EngineCore::rollback(uint64_t id, int64_t num_tokens) {
  Request* r = scheduler_.find_running(id);
  if (!r || num_tokens < 0 || num_tokens >= r->num_generated()) return false;
  r->tokens.resize(r->tokens.size() - size_t(num_tokens));
  // The last remaining token is computed again, for its logits.
  scheduler_.rollback(*r, std::max<int64_t>(0, r->num_computed + 1 - int64_t(r->tokens.size())));
  counters_.generation_tokens -= num_tokens;
  return true;
}

uint64_t EngineCore::add(std::vector<int32_t> prompt, const SamplingParams& params, TokenMask token_mask,
                         std::vector<ImageInput> images) {
  validate(params, config_.vocab_size);
  if (prompt.empty()) invalid("prompt_token_ids", "expected at least one token, got none");
  if (int64_t(prompt.size()) >= plan_.max_model_len)
    invalid("prompt_token_ids", "expected fewer than max_model_len = ", plan_.max_model_len,
            " tokens, so that one can be generated, got ", prompt.size(), limit_reason());
  check_tokens("prompt_token_ids", prompt, config_.vocab_size);
  std::vector<RequestImage> checked_images = check_images(config_, encoder_ != nullptr, prompt, std::move(images));
  for (const RequestImage& image : checked_images) encoder_->check_size(image);
  if (params.exact && low_experts_)
    invalid("exact",
            "expected false (expert_selection=None) where experts that are not resident are computed in low precision, with ",
            "expert_policy=\"", options_.expert_policy, "\"");
  if (params.exact && prefetch_ && prefetch_->pregated())
    invalid("exact",
            "expected false (expert_selection=None) with expert_prefetch=\"pregated\", which is not the model's own routing");
  const int64_t num_forced = int64_t(params.forced_token_ids.size());
  if (int64_t(prompt.size()) + num_forced > plan_.max_model_len)
    invalid("forced_token_ids", "expected at most ", plan_.max_model_len - int64_t(prompt.size()), " tokens after a prompt of ",
            prompt.size(), " (max_model_len = ", plan_.max_model_len, "), got ", num_forced, limit_reason());
  if (options_.max_num_queued_reqs && scheduler_.num_queued() >= options_.max_num_queued_reqs)
    fail(ErrorCode::kQueueFull, "max_num_queued_reqs", "max_num_queued_reqs: ", scheduler_.num_queued(),
         " requests are waiting for one of the ", options_.max_num_seqs, " places, the limit is ", options_.max_num_queued_reqs);
  if (const int64_t limit = options_.max_num_queued_tokens, waiting = scheduler_.num_waiting_tokens();
      limit && waiting && waiting + int64_t(prompt.size()) > limit)
    fail(ErrorCode::kQueueFull, "max_num_queued_tokens", "max_num_queued_tokens: ", waiting,
         " prompt tokens are waiting, with the ", prompt.size(), " of this request there would be more than the limit of ",
         limit);
  auto r = std::make_unique<Request>();
  r->id = next_id_++;
  r->params = params;
  r->token_mask = std::move(token_mask);
  r->seed = params.seed ? *params.seed : derive_seed(options_.seed, r->id);
  r->prompt_len = int64_t(prompt.size());
  r->max_len = std::min<int64_t>(plan_.max_model_len, r->prompt_len + (num_forced ? num_forced : params.max_tokens));
  r->tokens = std::move(prompt);
  r->images = std::move(checked_images);
  r->tokens.reserve(size_t(r->max_len));
  r->arrival_time = now();
  if (params.timeout > 0) r->deadline = r->arrival_time + params.timeout;
  uint64_t id = r->id;
  scheduler_.add(std::move(r));
  return id;
}

std::vector<EngineCore::Drawn> EngineCore::run(const ScheduledStep& step) {
  double start = now();
  BatchView batch = batch_.build(step, pool_.block_size());
  selection_.prepare(batch);
  decoder_.forward(batch, cache_, selection_.current(), {}, states_.views(), batch_.image_rows());
  counters_.model_seconds += now() - start;
  std::vector<Drawn> drawn = use_logits(step);
  decoder_.end_step(layer_stats_);
  record(step, batch);
  take_drawn_tokens(drawn);
  return drawn;
}

FinishReason EngineCore::finish_reason(const Request& r) const {
  int32_t token = r.tokens.back();
  auto contains = [&](const std::vector<int32_t>& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
  bool is_stop = (!r.params.ignore_eos && contains(config_.eos_token_ids)) || contains(r.params.stop_token_ids);
  if (is_stop && r.num_generated() >= r.params.min_tokens && r.params.forced_token_ids.empty()) return FinishReason::kStop;
  return int64_t(r.tokens.size()) >= r.max_len ? FinishReason::kLength : FinishReason::kNone;
}

StepOutput EngineCore::make_output(Request& r) {
  StepOutput out;
  out.request_id = r.id;
  out.routed_experts = take_routed_experts(r);
  out.num_cached_tokens = r.num_cached_tokens;
  out.num_preemptions = r.num_preemptions;
  out.num_computed_prompt_tokens = r.num_computed_prompt_tokens();
  out.num_selected_rows = r.num_selected_rows;
  out.num_decode_steps = r.num_decode_steps;
  out.num_experts_read = r.num_experts_read;
  out.scheduler_time = r.scheduler_time;
  out.arrival_time = r.arrival_time;
  out.first_scheduled_time = r.first_scheduled_time;
  out.first_token_time = r.first_token_time;
  return out;
}

// Ends the request, whose last output this is.
void EngineCore::finish(const Request& r, FinishReason reason, StepOutput& out) {
  out.finish_reason = reason;
  out.finish_time = now();
  ++(reason == FinishReason::kTimeout ? counters_.aborted : counters_.finished);
  scheduler_.remove(r.id);
}

std::vector<StepOutput> EngineCore::end_expired(double now) {
  std::vector<StepOutput> outputs;
  for (Request* r : scheduler_.expired(now)) {
    StepOutput& out = outputs.emplace_back(make_output(*r));
    out.error = str_cat("timeout: the request's ", r->params.timeout, " seconds are over, ", r->num_generated(),
                        " tokens were generated");
    finish(*r, FinishReason::kTimeout, out);
  }
  return outputs;
}

StepOutput EngineCore::postprocess(Drawn drawn) {
  Request& r = *drawn.request;
  if (!drawn.error.empty()) {
    StepOutput out = make_output(r);
    out.error = std::move(drawn.error);
    finish(r, FinishReason::kError, out);
    return out;
  }
  r.tokens.push_back(drawn.result.token);
  ++counters_.generation_tokens;
  if (r.num_generated() == 1) {
    r.first_token_time = now();
    counters_.prompt_tokens += r.prompt_len;
    counters_.cached_prompt_tokens += r.num_cached_tokens;
    counters_.images += int64_t(r.images.size());
  }
  StepOutput out = make_output(r);
  out.token_ids = {drawn.result.token};
  if (r.params.logprobs >= 0) out.logprobs.push_back(std::move(drawn.result.logprobs));
  if (r.num_generated() == 1) out.prompt_logprobs = std::move(r.prompt_logprobs);
  if (const FinishReason reason = finish_reason(r); reason != FinishReason::kNone) {
    if (reason == FinishReason::kStop) out.stop_token_id = drawn.result.token;
    finish(r, reason, out);
  }
  return out;
}

// Makes the requests of a step that failed compute their states anew, since some layers may have taken its tokens, others not.
void EngineCore::forget_states(const ScheduledStep& step) {
  if (states_.empty()) return;
  backend_->begin_step({});  // drops what the failed step has left
  scheduler_.forget_step(step);
}

std::vector<StepOutput> EngineCore::step() {
  double start = now();
  // These outputs must not be lost to a failure of the model, so they are all that this step does.
  if (std::vector<StepOutput> outputs = end_expired(start); !outputs.empty()) return outputs;
  const double encoded = encoder_ ? encoder_->seconds() : 0, before_schedule = now();
  if (encoder_ && has_unfinished()) check_files();  // the tower runs while the rows are chosen
  ScheduledStep scheduled = scheduler_.schedule(start);
  const double encoder_seconds = encoder_ ? encoder_->seconds() - encoded : 0;
  const double schedule_seconds = now() - before_schedule - encoder_seconds;
  const BytesRead before = bytes_read();
  const double waited = store_ ? store_->wait_seconds() : 0;
  if (scheduled.requests.empty()) return {};
  check_files();
  for (ScheduledRequest& s : scheduled.requests)
    if (s.request->first_scheduled_time == 0) s.request->first_scheduled_time = start;

  // Before advance(), only fields of a request change that a second try of the step sets again, and states, so a failure in the model
  // leaves all requests as they were, or without their states.
  std::vector<Drawn> drawn;
  try {
    drawn = run(scheduled);
  } catch (const RowError& e) {
    // One request is to blame: it ends, and the next step repeats this one without it.
    size_t i = 0;
    while (batch_.first_row(i + 1) <= e.row()) ++i;
    Request* request = scheduled.requests[i].request;
    forget_states(scheduled);
    return {postprocess({request, {}, str_cat("request ", request->id, ": ", e.what())})};
  } catch (const StepError& e) {
    std::vector<StepOutput> outputs;
    for (const ScheduledRequest& s : scheduled.requests)
      outputs.push_back(postprocess({s.request, {}, str_cat("request ", s.request->id, ": ", e.what())}));
    return outputs;
  } catch (...) {
    forget_states(scheduled);
    throw;
  }

  for (size_t i = 0; i < scheduled.requests.size(); ++i) {
    Request& r = *scheduled.requests[i].request;
    const bool acted = selection_.current().acts(scheduled.phase, batch_.group_rows(i));
    const bool reproducible = !acted || r.params.exact;
    if (!reproducible) r.num_selected_rows += scheduled.requests[i].num_tokens;
    r.scheduler_time += schedule_seconds;
    scheduler_.advance(r, scheduled.requests[i].num_tokens, reproducible);
  }
  count_selection(scheduled);
  std::vector<StepOutput> outputs;
  for (const ScheduledRequest& s : scheduled.requests)
    if (s.request->params.report_progress && s.request->num_computed < s.request->prompt_len)
      outputs.push_back(make_output(*s.request));
  for (Drawn& d : drawn) outputs.push_back(postprocess(std::move(d)));

  double seconds = now() - start;
  ++counters_.steps;
  counters_.step_seconds += seconds;
  seconds -= encoder_seconds;
  if (scheduled.phase == Phase::kDecodeOnly) {
    if (virtual_cache_) virtual_cache_->end_step();
    ++counters_.decode_steps;
    counters_.decode_seconds += seconds;
    const BytesRead after = bytes_read();
    selection_.observe(seconds, store_ ? store_->wait_seconds() - waited : 0, layer_stats_, after.all - before.all,
                       after.experts - before.experts);
  }
  return outputs;
}

}  // namespace lynx_rt
