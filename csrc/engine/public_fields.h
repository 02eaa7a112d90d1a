// The fields of the structs of engine.h and sampling_params.h, one list per struct, for code that copies them one by one: the C
// ABI (c_api_structs.cc) and the Python bindings. F(name) is expanded for every field. tests/cpp/test_c_api_params.cc does not
// compile where a list lacks a field; tests/python/test_fields.py checks the Python layer against the same lists.
#pragma once

// clang-format off

// Fields of EngineOptions that lynx_rt_options has under the same names; its 0 means the default of EngineOptions.
#define LYNX_RT_OPTION_FIELDS(F) \
  F(device) F(load_format) F(dtype) F(quantization) F(quantization_cache) F(activations) F(expert_file) \
  F(expert_memory) F(memory) F(expert_policy) F(expert_prefetch) F(io_timeout_s) F(max_model_len) F(max_num_seqs) \
  F(max_num_batched_tokens) F(max_num_queued_reqs) F(max_num_queued_tokens) F(admission) F(kv_cache_memory_bytes) \
  F(block_size) F(expert_selection) F(num_threads) F(isa) F(seed) F(disable_dependent_launch) F(enable_return_routed_experts) \
  F(encoder_cache_memory_bytes) F(language_model_only)
// Fields of EngineOptions that lynx_rt_options inverts, because 0 must mean the default, or lacks.
#define LYNX_RT_OPTION_FIELDS_UNLIKE_C(F) F(enable_prefix_caching) F(enable_mixed_chunk) F(record_router_logits) \
  F(virtual_residents) F(virtual_residency)
#define LYNX_RT_OPTION_CALLBACKS(F) F(on_load_progress) F(on_log)

// Fields of SamplingParams that lynx_rt_params has under the same names, with 0 for the default; then its lists of ids.
#define LYNX_RT_SAMPLING_FIELDS(F) \
  F(top_p) F(top_k) F(min_p) F(presence_penalty) F(frequency_penalty) F(repetition_penalty) F(max_tokens) F(min_tokens) \
  F(ignore_eos) F(exact) F(priority) F(timeout) F(cache_salt) F(isolation_group) F(report_progress)
#define LYNX_RT_SAMPLING_ID_LISTS(F) F(stop_token_ids) F(allowed_token_ids) F(forced_token_ids)
// Fields of SamplingParams that have another form in C, or whose 0 means something else there.
#define LYNX_RT_SAMPLING_FIELDS_UNLIKE_C(F) F(temperature) F(seed) F(logprobs) F(prompt_logprobs) F(logit_bias) F(bad_words)

#define LYNX_RT_STATS_FIELDS(F) \
  F(num_running) F(num_waiting) F(kv_blocks_used) F(kv_blocks_total) F(steps) F(decode_steps) F(prompt_tokens) \
  F(cached_prompt_tokens) F(generation_tokens) F(preemptions) F(finished) F(aborted) F(step_seconds) F(decode_seconds) \
  F(model_seconds) F(sampling_seconds) F(decode_rows) F(bytes_read) F(num_waiting_tokens) F(decode_rows_selected) \
  F(decode_rows_exact) F(decode_rows_mixed) F(bytes_read_experts) F(bytes_read_dense) F(bytes_read_kv) F(images) F(images_encoded) \
  F(images_cached) F(encoder_seconds) F(encoder_cache_bytes)
#define LYNX_RT_STATS_PARTS(F) F(layers) F(ops) F(slo) F(tier)
#define LYNX_RT_LAYER_STATS_FIELDS(F) \
  F(layer) F(steps) F(rows) F(union_before) F(active) F(remapped_pairs) F(guard_hits) F(retained_mass) \
  F(changed_rows) F(misses_before) F(misses)
#define LYNX_RT_OP_STATS_FIELDS(F) F(name) F(calls) F(seconds) F(bytes)
#define LYNX_RT_SLO_STATS_FIELDS(F) \
  F(target_seconds) F(fixed_seconds) F(seconds_per_expert) F(steps_over_target) F(level) F(seconds_per_miss)
#define LYNX_RT_SLO_STATS_PARTS(F) F(levels)
#define LYNX_RT_TIER_STATS_FIELDS(F) \
  F(slots) F(slot_bytes) F(resident) F(hits) F(misses) F(decode_hits) F(decode_misses) F(prefetched) F(prefetch_used) \
  F(bytes_read) F(failed_reads) F(wait_seconds) F(read_seconds) F(read_rate) F(read_depth) F(low_bytes) F(late)

// Numbers in ModelInfo that ModelConfig has under the same names.
#define LYNX_RT_MODEL_SHAPE_FIELDS(F) \
  F(hidden_size) F(num_layers) F(num_heads) F(num_kv_heads) F(head_dim) F(vocab_size) F(num_experts) F(num_experts_per_tok) \
  F(moe_intermediate_size) F(max_position_embeddings)
// Numbers in ModelInfo that the engine computes.
#define LYNX_RT_MODEL_SIZE_FIELDS(F) \
  F(num_moe_layers) F(max_model_len) F(weight_bytes) F(kv_bytes) F(kv_bytes_per_token) F(workspace_bytes) F(image_token_id) \
  F(patch_size) F(temporal_patch_size) F(merge_size)
#define LYNX_RT_MODEL_TEXT_FIELDS(F) F(model_type) F(dtype) F(device)
// The other fields of ModelInfo; the C ABI has only the first.
#define LYNX_RT_MODEL_OTHER_FIELDS(F) F(eos_token_ids) F(warnings) F(copied_weight_bytes) F(mapped_weight_bytes)

// clang-format on
