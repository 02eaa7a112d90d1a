/* The C ABI: engine.h for other languages, without the research functions (logits, recording, calibration). Plain C99.
 *
 *   lynx_rt_engine* engine = lynx_rt_create("path/to/model", NULL);
 *   if (!engine) { fprintf(stderr, "%s\n", lynx_rt_last_error()); return 1; }
 *   uint64_t id;
 *   if (lynx_rt_add_request(engine, prompt, prompt_len, NULL, &id) != LYNX_RT_OK) ...
 *   while (lynx_rt_has_unfinished(engine))
 *     if (lynx_rt_step(engine, on_output, user) != LYNX_RT_OK) ...
 *   lynx_rt_destroy(engine);
 *
 * A thread that serves requests of other threads loops over lynx_rt_wait_for_work() and lynx_rt_step().
 *
 * Structs that the caller fills begin with `size`: zero the struct and set size to its sizeof. In every other field 0 means the
 * default, so a library newer than its caller's header still reads the struct correctly. Structs that the library fills are
 * allocated by it and grow only at their ends; lists of structs that may grow are lists of pointers. A program built with one
 * header of 0.x runs with the library of that version and with later ones of the same x.
 *
 * Threads: every function may be called from any thread; one lock serialises them, so a call may wait for the end of a step.
 * lynx_rt_destroy() must be the last call on an engine. In the child of a fork(), calls on an engine of the parent return
 * LYNX_RT_CLOSED, and lynx_rt_destroy() frees nothing of it.
 *
 * Callbacks are called without a lock held, by the thread whose call leads to them. A callback may call every function on the engine
 * except lynx_rt_step() (an error) and lynx_rt_destroy() (refused). An exception that a callback throws ends the call that led to it
 * with LYNX_RT_INTERNAL, and loses no output: see lynx_rt_step(). */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "lynx_rt/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Codes 1 to 9 are 1 + an ErrorCode of error.h. */
typedef enum lynx_rt_status {
  LYNX_RT_OK = 0,
  LYNX_RT_INVALID_ARGUMENT = 1,
  LYNX_RT_UNSUPPORTED = 2,
  LYNX_RT_NOT_FOUND = 3,
  LYNX_RT_CORRUPT_FILE = 4,
  LYNX_RT_OUT_OF_MEMORY = 5,
  LYNX_RT_QUEUE_FULL = 6,
  LYNX_RT_CLOSED = 7,
  LYNX_RT_DEVICE = 8,
  LYNX_RT_INTERNAL = 9,
  LYNX_RT_CANCELLED = 100 /* on_load_progress returned 0 */
} lynx_rt_status;

/* Why a request has ended: FinishReason of engine.h. An aborted request has no further output: see lynx_rt_abort(). */
typedef enum lynx_rt_finish {
  LYNX_RT_RUNNING = 0, /* it goes on */
  LYNX_RT_STOP = 1,    /* ended by an end-of-text or stop token: stop_token_id */
  LYNX_RT_LENGTH = 2,  /* ended by max_tokens, the context's end or the last forced token */
  LYNX_RT_ERROR = 3,   /* ended by an error: see `error` */
  LYNX_RT_TIMEOUT = 4  /* ended by its timeout: see `error` */
} lynx_rt_finish;

typedef enum lynx_rt_log_level { LYNX_RT_LOG_INFO = 0, LYNX_RT_LOG_WARNING = 1 } lynx_rt_log_level;

typedef struct lynx_rt_engine lynx_rt_engine;

/* Reports the bytes of weights done and the total. Return 0 to end the load with LYNX_RT_CANCELLED, another value to go on. Not
 * called where the CPU reads weights in place, which takes no time. */
typedef int (*lynx_rt_load_progress)(int64_t done, int64_t total, void* user);

/* Receives one line, without a newline, valid during the call. The warning of a read that hangs comes in the middle of a step: calls of
 * the engine would wait for themselves then. */
typedef void (*lynx_rt_log)(lynx_rt_log_level level, const char* text, void* user);

/* EngineOptions of engine.h; NULL and 0 = its default */
typedef struct lynx_rt_options {
  size_t size;
  const char* device;
  const char* dtype;
  const char* expert_selection;
  int64_t max_model_len;
  int64_t max_num_seqs;
  int32_t num_threads;
  uint64_t seed;
  const char* quantization;
  const char* quantization_cache;
  const char* load_format;
  const char* isa;
  int64_t max_num_batched_tokens; /* 0 = 2048, or max_num_seqs where that is more */
  int64_t max_num_queued_reqs;    /* requests beyond max_num_seqs that may wait; 0 = no limit */
  int64_t kv_cache_memory_bytes;  /* 0 = chosen from free memory and max_model_len */
  int64_t block_size;             /* 0 = 16 tokens */
  int32_t disable_prefix_caching;
  int32_t disable_mixed_chunk;
  int32_t disable_dependent_launch;
  int32_t enable_return_routed_experts; /* lynx_rt_output.routed_experts */
  lynx_rt_load_progress on_load_progress;
  void* load_progress_user;
  lynx_rt_log on_log;
  void* log_user;
  int64_t max_num_queued_tokens; /* prompt tokens of all requests that no step has taken up yet; 0 = no limit */
  const char* activations;
  const char* expert_file;
  const char* expert_memory;
  const char* expert_policy;
  const char* expert_prefetch;
  double io_timeout_s; /* 0 = steps wait for reads of experts without end */
  const char* memory;
  const char* admission; /* which waiting request takes a free place: "first_come", "affinity:skips=128"; NULL = first_come */
  int64_t encoder_cache_memory_bytes; /* for what the vision tower says of images; 0 = chosen */
  int64_t language_model_only;        /* 1 = the vision tower is not loaded, and images are refused */
} lynx_rt_options;

typedef struct lynx_rt_token_bias {
  int32_t token_id;
  float bias;
} lynx_rt_token_bias;

typedef struct lynx_rt_token_list {
  const int32_t* token_ids;
  size_t num_tokens;
} lynx_rt_token_list;

/* SamplingParams of sampling_params.h; all zero = greedy, 256 tokens. Arrays are copied. */
typedef struct lynx_rt_params {
  size_t size;
  float temperature;  /* 0 = greedy */
  float top_p;        /* (0, 1]; 0 = 1 = off */
  int32_t top_k;      /* 0 = all */
  int32_t max_tokens; /* 0 = 256 */
  int32_t ignore_eos; /* not 0: go on after the model's end-of-text token */
  int32_t exact;      /* not 0: this request has the model's own routing, whatever the engine's selection is */
  int32_t has_seed;   /* not 0: use `seed`; 0: derive it from the engine's seed and the request's number */
  uint64_t seed;
  float min_p;                 /* [0, 1], relative to the most likely token; 0 = off */
  float presence_penalty;      /* [-2, 2], on generated tokens */
  float frequency_penalty;     /* [-2, 2], per occurrence in generated tokens */
  float repetition_penalty;    /* > 0, on prompt and generated tokens; 0 = 1 = off */
  int32_t min_tokens;          /* no end of text before this many tokens */
  int32_t has_logprobs;        /* not 0: log probabilities of each new token and the `logprobs` most likely ones */
  int32_t logprobs;            /* 0 = the new token's alone */
  int32_t has_prompt_logprobs; /* likewise for the prompt's tokens */
  int32_t prompt_logprobs;
  const int32_t* stop_token_ids; /* each ends the request and is its last token */
  size_t num_stop_token_ids;
  const int32_t* allowed_token_ids; /* none = all */
  size_t num_allowed_token_ids;
  const int32_t* forced_token_ids; /* the tokens to generate, whatever their likelihood; none = tokens are drawn */
  size_t num_forced_token_ids;
  const lynx_rt_token_bias* logit_bias; /* added before the softmax */
  size_t num_logit_bias;
  const lynx_rt_token_list* bad_words; /* token sequences that must not be completed */
  size_t num_bad_words;
  int32_t priority;            /* requests wait and are preempted in the order of (priority, arrival), lower first */
  int32_t report_progress;     /* not 0: an output without tokens after each step that computes a part of the prompt */
  double timeout;              /* seconds from the arrival after which the request ends with LYNX_RT_TIMEOUT; 0 = none */
  const char* cache_salt;      /* only requests with equal salts find each other's pages in the prefix cache; NULL = "" */
  const char* isolation_group; /* experts are selected for each group as if it were alone in the step; NULL = "" */
} lynx_rt_params;

/* TokenLogprob of engine.h. Will not grow. */
typedef struct lynx_rt_logprob {
  int32_t token_id;
  float logprob; /* natural log, of the model's distribution before penalties and temperature */
  int32_t rank;  /* 1 = most likely */
} lynx_rt_logprob;

/* The token itself first, then the most likely of the others in order. Will not grow. */
typedef struct lynx_rt_logprobs {
  const lynx_rt_logprob* entries;
  size_t num_entries;
} lynx_rt_logprobs;

/* StepOutput of engine.h: what one step did for one request. Pointers are valid during the callback. */
typedef struct lynx_rt_output {
  uint64_t request_id;
  const int32_t* token_ids; /* new tokens; a stop token is one of them */
  size_t num_tokens;
  lynx_rt_finish finish;
  const char* error;                /* why the request ended with LYNX_RT_ERROR or LYNX_RT_TIMEOUT, else "" */
  int32_t stop_token_id;            /* the token that ended the request with LYNX_RT_STOP; -1 = none */
  int32_t num_preemptions;          /* how often, so far, its pages were taken and computed again */
  const lynx_rt_logprobs* logprobs; /* one per new token, where has_logprobs */
  size_t num_logprobs;
  const lynx_rt_logprobs* prompt_logprobs; /* one per prompt token, the first empty; all with the first new token */
  size_t num_prompt_logprobs;
  int64_t num_cached_tokens; /* prompt tokens found in the prefix cache */
  double arrival_time;       /* seconds on the steady (monotonic) clock; 0 = not yet */
  double first_scheduled_time;
  double first_token_time;
  double finish_time;
  const int16_t* routed_experts; /* [rows, MoE layers, k] as RoutedExperts of engine.h; NULL unless enabled */
  int64_t num_routed_rows;
  int64_t num_routed_layers;
  int64_t num_routed_experts_per_tok;
  int64_t num_computed_prompt_tokens; /* cached ones included; falls where a preempted request starts again */
} lynx_rt_output;

typedef void (*lynx_rt_callback)(const lynx_rt_output* output, void* user);

/* ModelInfo of engine.h */
typedef struct lynx_rt_model_info {
  const char* model_type;
  const char* dtype;
  const char* device;
  int64_t hidden_size;
  int64_t num_layers;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t vocab_size;
  int64_t num_experts;
  int64_t num_experts_per_tok;
  int64_t moe_intermediate_size;
  int64_t num_moe_layers;
  int64_t max_model_len;           /* tokens of prompt and output that a request may have */
  int64_t max_position_embeddings; /* the model's own limit on max_model_len */
  int64_t weight_bytes;
  int64_t kv_bytes;
  int64_t kv_bytes_per_token;
  int64_t workspace_bytes;
  const int32_t* eos_token_ids;
  size_t num_eos_token_ids;
  int32_t image_token_id; /* stands for a row of an image; -1 = the model reads text alone */
  int64_t patch_size;     /* this and the next two: 0 where it reads text alone */
  int64_t temporal_patch_size;
  int64_t merge_size;
} lynx_rt_model_info;

/* One MoE layer in the decode-only steps: EngineStats::Layer of engine.h */
typedef struct lynx_rt_layer_stats {
  int64_t layer; /* its number among the model's layers */
  int64_t steps;
  int64_t rows;
  int64_t union_before;   /* experts that rows would have read with their own routing, summed over steps */
  int64_t active;         /* experts that rows did read, summed over steps */
  int64_t remapped_pairs; /* (row, expert) pairs that selection changed */
  int64_t guard_hits;
  double retained_mass;  /* share of the own choice's gate mass that is kept, summed over rows */
  int64_t changed_rows;  /* rows that did not get the experts of their own routing */
  int64_t misses_before; /* experts of rows' own routing that were not resident; 0 where all experts are in memory */
  int64_t misses;        /* the same of the experts that rows did read */
} lynx_rt_layer_stats;

typedef struct lynx_rt_op_stats {
  const char* name;
  int64_t calls;
  double seconds;
  int64_t bytes; /* bytes of weights and KV that it had to read */
} lynx_rt_op_stats;

typedef struct lynx_rt_slo_level {
  const char* selection;
  int64_t decode_steps;
} lynx_rt_slo_level;

/* EngineStats of engine.h: gauges, and counters since creation or lynx_rt_reset_stats() */
typedef struct lynx_rt_stats {
  int64_t num_running;
  int64_t num_waiting;
  int64_t kv_blocks_used;
  int64_t kv_blocks_total;
  int64_t steps;
  int64_t decode_steps; /* decode-only steps */
  int64_t prompt_tokens;
  int64_t cached_prompt_tokens;
  int64_t generation_tokens;
  int64_t preemptions;
  int64_t finished;
  int64_t aborted;
  double step_seconds;
  double decode_seconds;
  double model_seconds;
  double sampling_seconds;
  int64_t decode_rows;
  int64_t bytes_read;
  const lynx_rt_layer_stats* const* layers; /* one per MoE layer in order */
  size_t num_layers;
  const lynx_rt_op_stats* const* ops;
  size_t num_ops;
  double slo_target_seconds; /* expert selection "slo:..."; no levels otherwise */
  double slo_fixed_seconds;
  double slo_seconds_per_expert;
  int64_t slo_steps_over_target;
  int64_t slo_level;
  const lynx_rt_slo_level* const* slo_levels;
  size_t num_slo_levels;
  int64_t num_waiting_tokens;   /* gauge: prompt tokens of the waiting requests */
  int64_t decode_rows_selected; /* of decode_rows: those to which the engine's selection was applied */
  int64_t decode_rows_exact;    /* of decode_rows: those of requests with `exact` */
  int64_t decode_rows_mixed;    /* decode rows of steps that computed prompts too */
  int64_t bytes_read_experts;   /* this and the next two add up to bytes_read */
  int64_t bytes_read_dense;
  int64_t bytes_read_kv;
  int64_t tier_slots; /* where not all experts are in memory: those that there is memory for; 0 = all are */
  int64_t tier_slot_bytes;
  int64_t tier_resident;
  int64_t tier_hits; /* experts of a layer and step that were in memory, and those that were read */
  int64_t tier_misses;
  int64_t tier_decode_hits; /* in decode-only steps */
  int64_t tier_decode_misses;
  int64_t tier_prefetched; /* experts whose reads expert_prefetch began, and those that were needed */
  int64_t tier_prefetch_used;
  int64_t tier_bytes_read;
  int64_t tier_failed_reads;
  double tier_wait_seconds; /* steps waited for reads */
  double tier_read_seconds; /* reads were under way */
  double tier_read_rate;    /* bytes per second of that time, lately; 0 = nothing was read yet */
  int64_t tier_read_depth;  /* pieces of 1 MiB that are read at a time */
  double slo_seconds_per_miss;
  int64_t tier_low_bytes;      /* of copies in low precision, from which misses are computed; 0 = there are none */
  int64_t tier_late;           /* with these: hits that had not arrived when a step needed them */
  int64_t images;              /* of the prompts counted by prompt_tokens */
  int64_t images_encoded;      /* images that the vision tower was run for */
  int64_t images_cached;       /* images that a request needed and that were in the encoder cache */
  double encoder_seconds;      /* time of the tower */
  int64_t encoder_cache_bytes; /* gauge */
} lynx_rt_stats;

/* "0.2.0" */
LYNX_RT_API const char* lynx_rt_version(void);

/* Message of this thread's last failed call; "" where none has failed. Valid until the thread's next failed call. */
LYNX_RT_API const char* lynx_rt_last_error(void);
/* Status of this thread's last failed call, for calls that return no status; LYNX_RT_OK where none has failed. */
LYNX_RT_API lynx_rt_status lynx_rt_last_status(void);
/* The argument, key, tensor or file at fault in that call, "" where there is none; valid as long as lynx_rt_last_error(). */
LYNX_RT_API const char* lynx_rt_last_error_field(void);

/* Loads a Hugging Face model folder. options may be NULL. Returns NULL on failure. */
LYNX_RT_API lynx_rt_engine* lynx_rt_create(const char* model_path, const lynx_rt_options* options);

/* Frees the weights and the cache and ends all requests and waits; later calls return LYNX_RT_CLOSED. May be repeated. */
LYNX_RT_API lynx_rt_status lynx_rt_close(lynx_rt_engine* engine);

/* Frees everything; NULL is fine. No other call on the engine may be in progress. Within a callback of lynx_rt_step() it only sets
 * lynx_rt_last_error(). */
LYNX_RT_API void lynx_rt_destroy(lynx_rt_engine* engine);

/* Queues a request; params may be NULL. *request_id is written on success only; it is not 0. */
LYNX_RT_API lynx_rt_status lynx_rt_add_request(lynx_rt_engine* engine, const int32_t* token_ids, size_t num_tokens,
                                               const lynx_rt_params* params, uint64_t* request_id);

/* ImageInput of engine.h. Will not grow. Arrays are copied. patches: [grid_height * grid_width, in_channels * temporal_patch_size *
 * patch_size^2], in the order of merge blocks. */
typedef struct lynx_rt_image {
  int64_t position; /* index of its first token in the prompt */
  int32_t grid_height;
  int32_t grid_width;
  const float* patches;
  size_t num_values;  /* of patches */
  const char* digest; /* names the content: images with equal digests and grids count as equal */
  size_t digest_size; /* in bytes, not 0 */
} lynx_rt_image;

/* lynx_rt_add_request() of a prompt with images, in the order of their positions. */
LYNX_RT_API lynx_rt_status lynx_rt_add_request_with_images(lynx_rt_engine* engine, const int32_t* token_ids, size_t num_tokens,
                                                           const lynx_rt_image* images, size_t num_images,
                                                           const lynx_rt_params* params, uint64_t* request_id);

/* Runs one step, then calls `callback` in this thread once for each request that has an output. Steps of several threads take turns,
 * callbacks included, so a request's outputs come in order.
 * Where a callback throws, its output counts as delivered and this call returns LYNX_RT_INTERNAL. The next lynx_rt_step() delivers
 * the outputs after it, without running a step of its own. */
LYNX_RT_API lynx_rt_status lynx_rt_step(lynx_rt_engine* engine, lynx_rt_callback callback, void* user);

/* Ends a request. After it returns, no callback for the request runs or begins in another thread, and none begins in this one:
 * outputs that a step has ready are dropped, including the last one, and a callback that runs in another thread is waited for. So the
 * memory that the callback uses for the request may then be freed. The callback must not wait for this call, nor for a lock that is
 * held around it.
 * LYNX_RT_NOT_FOUND where the request is unknown or aborted, or its last output has been delivered or is being delivered. */
LYNX_RT_API lynx_rt_status lynx_rt_abort(lynx_rt_engine* engine, uint64_t request_id);

/* Returns 1 while requests wait or run, or have outputs not yet delivered, else 0; 0 for NULL and a closed engine. */
LYNX_RT_API int lynx_rt_has_unfinished(const lynx_rt_engine* engine);

/* Waits until lynx_rt_has_unfinished(), lynx_rt_wake() or timeout_ms have passed (negative = no limit). Writes to *has_work, unless
 * has_work is NULL, whether there is something to do. LYNX_RT_CLOSED where the engine is closed, or is closed during the wait. */
LYNX_RT_API lynx_rt_status lynx_rt_wait_for_work(lynx_rt_engine* engine, int64_t timeout_ms, int* has_work);
/* Ends every wait in progress; where there is none, the next wait ends at once. */
LYNX_RT_API lynx_rt_status lynx_rt_wake(lynx_rt_engine* engine);

/* Sets the selection from the next step on: "topk", "lynx", ... */
LYNX_RT_API lynx_rt_status lynx_rt_set_expert_selection(lynx_rt_engine* engine, const char* selection);
/* Returns the current selection, NULL on failure. Valid until the thread's next call of this function. */
LYNX_RT_API const char* lynx_rt_expert_selection(const lynx_rt_engine* engine);

/* Returns NULL on failure. Valid until lynx_rt_destroy(), also after lynx_rt_close(). */
LYNX_RT_API const lynx_rt_model_info* lynx_rt_get_model_info(const lynx_rt_engine* engine);

/* Returns the current statistics, NULL on failure. Free them with lynx_rt_free_stats(), which takes NULL too; both before and after
 * lynx_rt_destroy() is fine. */
LYNX_RT_API const lynx_rt_stats* lynx_rt_get_stats(const lynx_rt_engine* engine);
LYNX_RT_API void lynx_rt_free_stats(const lynx_rt_stats* stats);
LYNX_RT_API lynx_rt_status lynx_rt_reset_stats(lynx_rt_engine* engine);

/* Times on the steady (monotonic) clock in seconds, 0 = none: the end of the last step that did not fail, and the start of the step in
 * progress. They wait for no lock, so that a watchdog can ask while a step hangs. 0 for NULL. */
LYNX_RT_API double lynx_rt_last_step_time(const lynx_rt_engine* engine);
LYNX_RT_API double lynx_rt_step_start_time(const lynx_rt_engine* engine);

/* Verifies page reference counts, the free list and the prefix cache: LYNX_RT_INTERNAL says what is inconsistent. */
LYNX_RT_API lynx_rt_status lynx_rt_check_integrity(const lynx_rt_engine* engine);

#ifdef __cplusplus
}
#endif
