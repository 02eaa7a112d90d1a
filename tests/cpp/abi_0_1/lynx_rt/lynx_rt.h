/* The C ABI: the core of engine.h for other languages. Plain C99.
 *
 *   lynx_rt_engine* engine = lynx_rt_create("path/to/model", NULL);
 *   if (!engine) { fprintf(stderr, "%s\n", lynx_rt_last_error()); return 1; }
 *   uint64_t id;
 *   if (lynx_rt_add_request(engine, prompt, prompt_len, NULL, &id) != LYNX_RT_OK) ...
 *   while (lynx_rt_has_unfinished(engine))
 *     if (lynx_rt_step(engine, on_output, user) != LYNX_RT_OK) ...
 *   lynx_rt_destroy(engine);
 *
 * Structs that the caller fills begin with `size`: zero the struct and set size to its sizeof. Every other field is such that 0
 * means the default, so a library newer than its caller's header still reads it rightly.
 * Thread-safety: as engine.h; lynx_rt_destroy() must be the last call on an engine. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "lynx_rt/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 1 + the ErrorCode of error.h */
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
  LYNX_RT_INTERNAL = 9
} lynx_rt_status;

/* FinishReason of engine.h */
typedef enum lynx_rt_finish { LYNX_RT_RUNNING = 0, LYNX_RT_STOP = 1, LYNX_RT_LENGTH = 2, LYNX_RT_ERROR = 3 } lynx_rt_finish;

typedef struct lynx_rt_engine lynx_rt_engine;

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
} lynx_rt_options;

/* SamplingParams of sampling_params.h; all zero = greedy, 256 tokens */
typedef struct lynx_rt_params {
  size_t size;
  float temperature;  /* 0 = greedy */
  float top_p;        /* (0, 1]; 0 = 1 = off */
  int32_t top_k;      /* 0 = all */
  int32_t max_tokens; /* 0 = 256 */
  int32_t ignore_eos; /* not 0: go on after the model's end of text */
  int32_t exact;      /* not 0: the model's own routing, whatever the engine's selection is */
  int32_t has_seed;   /* not 0: use `seed`; else it comes from the engine's seed and the request's number */
  uint64_t seed;
} lynx_rt_params;

/* what one step did for one request; pointers end with the callback */
typedef struct lynx_rt_output {
  uint64_t request_id;
  const int32_t* token_ids; /* new tokens */
  size_t num_tokens;
  lynx_rt_finish finish;
  const char* error; /* why it ended with LYNX_RT_ERROR, else "" */
} lynx_rt_output;

/* May add and abort requests; must not destroy the engine, and must not throw through this library. */
typedef void (*lynx_rt_callback)(const lynx_rt_output* output, void* user);

/* "0.1.0" */
LYNX_RT_API const char* lynx_rt_version(void);

/* What the last failed call of this thread said; "" where none has failed. Valid until the thread's next failed call. */
LYNX_RT_API const char* lynx_rt_last_error(void);

/* Loads a Hugging Face model folder. options may be NULL. Returns NULL on failure. */
LYNX_RT_API lynx_rt_engine* lynx_rt_create(const char* model_path, const lynx_rt_options* options);

/* Frees everything; NULL is fine. */
LYNX_RT_API void lynx_rt_destroy(lynx_rt_engine* engine);

/* Queues a request; params may be NULL. *request_id is written on success only. */
LYNX_RT_API lynx_rt_status lynx_rt_add_request(lynx_rt_engine* engine, const int32_t* token_ids, size_t num_tokens,
                                               const lynx_rt_params* params, uint64_t* request_id);

/* Runs one step, then calls back once for each request that it moved on, from this thread. */
LYNX_RT_API lynx_rt_status lynx_rt_step(lynx_rt_engine* engine, lynx_rt_callback callback, void* user);

/* Ends a request; no further output follows. LYNX_RT_NOT_FOUND where it is unknown or finished. */
LYNX_RT_API lynx_rt_status lynx_rt_abort(lynx_rt_engine* engine, uint64_t request_id);

/* 1 while requests wait or run, else 0; 0 for NULL. */
LYNX_RT_API int lynx_rt_has_unfinished(const lynx_rt_engine* engine);

#ifdef __cplusplus
}
#endif
