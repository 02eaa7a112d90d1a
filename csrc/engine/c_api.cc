// The C ABI over Engine: no exception leaves it.
#include <algorithm>
#include <cstring>
#include <new>

#include "base/error.h"
#include "lynx_rt/engine.h"
#include "lynx_rt/lynx_rt.h"
#include "lynx_rt/version.h"

struct lynx_rt_engine {
  std::unique_ptr<lynx_rt::Engine> engine;
};

namespace {

using lynx_rt::ErrorCode;
using lynx_rt::invalid;

static_assert(LYNX_RT_INTERNAL == int(ErrorCode::kInternal) + 1 && LYNX_RT_QUEUE_FULL == int(ErrorCode::kQueueFull) + 1);
static_assert(LYNX_RT_ERROR == int(lynx_rt::FinishReason::kError) && LYNX_RT_STOP == int(lynx_rt::FinishReason::kStop));

thread_local std::string last_error;

lynx_rt_status failed(lynx_rt_status status, const char* text) noexcept {
  try {
    last_error = text;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

template <class Call>
lynx_rt_status guarded(Call call) noexcept {
  try {
    call();
    return LYNX_RT_OK;
  } catch (const lynx_rt::Error& e) {
    return failed(lynx_rt_status(int(e.code()) + 1), e.what());
  } catch (const std::bad_alloc&) {
    return failed(LYNX_RT_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return failed(LYNX_RT_INTERNAL, e.what());
  } catch (...) {
    return failed(LYNX_RT_INTERNAL, "unknown exception");
  }
}

// The caller's struct, cut or filled up with zeros to the one this library knows.
template <class Struct>
Struct read(const Struct* from, const char* name) {
  Struct out{};
  if (!from) return out;
  if (from->size < sizeof from->size) invalid(name, "size is not set: expected sizeof(lynx_rt_", name, "), got ", from->size);
  std::memcpy(&out, from, std::min(from->size, sizeof out));
  return out;
}

lynx_rt::EngineOptions to_options(const lynx_rt_options* from) {
  lynx_rt_options given = read(from, "options");
  lynx_rt::EngineOptions out;
  if (given.device) out.device = given.device;
  if (given.dtype) out.dtype = given.dtype;
  if (given.expert_selection) out.expert_selection = given.expert_selection;
  out.max_model_len = given.max_model_len;
  if (given.max_num_seqs) out.max_num_seqs = given.max_num_seqs;
  out.max_num_batched_tokens = std::max(out.max_num_batched_tokens, out.max_num_seqs);
  out.num_threads = given.num_threads;
  out.seed = given.seed;
  if (given.quantization) out.quantization = given.quantization;
  if (given.quantization_cache) out.quantization_cache = given.quantization_cache;
  return out;
}

lynx_rt::SamplingParams to_params(const lynx_rt_params* from) {
  lynx_rt_params given = read(from, "params");
  lynx_rt::SamplingParams out;
  out.temperature = given.temperature;
  if (given.top_p != 0) out.top_p = given.top_p;
  out.top_k = given.top_k;
  if (given.max_tokens) out.max_tokens = given.max_tokens;
  out.ignore_eos = given.ignore_eos != 0;
  out.exact = given.exact != 0;
  if (given.has_seed) out.seed = given.seed;
  return out;
}

lynx_rt::Engine& checked(lynx_rt_engine* engine) {
  if (!engine) invalid("engine", "expected an engine, got NULL");
  return *engine->engine;
}

}  // namespace

const char* lynx_rt_version(void) { return LYNX_RT_VERSION; }

const char* lynx_rt_last_error(void) { return last_error.c_str(); }

lynx_rt_engine* lynx_rt_create(const char* model_path, const lynx_rt_options* options) {
  std::unique_ptr<lynx_rt_engine> out;
  guarded([&] {
    if (!model_path) invalid("model_path", "expected a path, got NULL");
    out = std::make_unique<lynx_rt_engine>();
    out->engine = lynx_rt::Engine::create(model_path, to_options(options));
  });
  return out && out->engine ? out.release() : nullptr;
}

void lynx_rt_destroy(lynx_rt_engine* engine) { delete engine; }

lynx_rt_status lynx_rt_add_request(lynx_rt_engine* engine, const int32_t* token_ids, size_t num_tokens,
                                   const lynx_rt_params* params, uint64_t* request_id) {
  return guarded([&] {
    if (!token_ids && num_tokens) invalid("token_ids", "expected ", num_tokens, " tokens, got NULL");
    if (!request_id) invalid("request_id", "expected where to write the request's number, got NULL");
    *request_id = checked(engine).add_request({token_ids, token_ids + num_tokens}, to_params(params));
  });
}

lynx_rt_status lynx_rt_step(lynx_rt_engine* engine, lynx_rt_callback callback, void* user) {
  return guarded([&] {
    if (!callback) invalid("callback", "expected a function, got NULL");
    for (const lynx_rt::StepOutput& out : checked(engine).step()) {
      lynx_rt_output view{out.request_id, out.token_ids.data(), out.token_ids.size(), lynx_rt_finish(out.finish_reason),
                          out.error.c_str()};
      callback(&view, user);
    }
  });
}

lynx_rt_status lynx_rt_abort(lynx_rt_engine* engine, uint64_t request_id) {
  return guarded([&] {
    if (!checked(engine).abort(request_id))
      lynx_rt::fail(ErrorCode::kNotFound, "request_id", "request_id: ", request_id, " is unknown or finished");
  });
}

int lynx_rt_has_unfinished(const lynx_rt_engine* engine) {
  int unfinished = 0;
  if (engine) guarded([&] { unfinished = engine->engine->has_unfinished(); });
  return unfinished;
}
