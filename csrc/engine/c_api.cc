// The C ABI over Engine. It lets no exception of this library out.
#include <cxxabi.h>

#include <new>

#include "base/error.h"
#include "engine/c_api_structs.h"
#include "lynx_rt/engine.h"
#include "lynx_rt/lynx_rt.h"
#include "lynx_rt/version.h"

using lynx_rt::ErrorCode;
using lynx_rt::invalid;

struct lynx_rt_engine {
  explicit lynx_rt_engine(std::unique_ptr<lynx_rt::Engine> e) : engine(std::move(e)), info(engine->model_info()) {}
  std::unique_ptr<lynx_rt::Engine> engine;
  lynx_rt::ModelInfoView info;
};

namespace {

struct LastError {
  lynx_rt_status status = LYNX_RT_OK;
  std::string text, field;
};
thread_local LastError last_error;

lynx_rt_status failed(lynx_rt_status status, const char* text, const char* field = "") noexcept {
  last_error.status = status;
  try {
    last_error.text = text;
    last_error.field = field;
  } catch (...) {
    last_error.text.clear();
    last_error.field.clear();
  }
  return status;
}

template <class Call>
lynx_rt_status guarded(Call call) {
  try {
    call();
    return LYNX_RT_OK;
#ifdef __GLIBCXX__
  } catch (const abi::__forced_unwind&) {  // pthread_exit in a callback: the thread must be allowed to end
    throw;
#endif
  } catch (const lynx_rt::Error& e) {
    return failed(lynx_rt_status(int(e.code()) + 1), e.what(), e.field().c_str());
  } catch (const lynx_rt::LoadCancelled&) {
    return failed(LYNX_RT_CANCELLED, "on_load_progress: it returned 0, which ends the load", "on_load_progress");
  } catch (const std::bad_alloc&) {
    return failed(LYNX_RT_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return failed(LYNX_RT_INTERNAL, e.what());
  } catch (...) {
    return failed(LYNX_RT_INTERNAL, "unknown exception");
  }
}

lynx_rt::Engine& checked(const lynx_rt_engine* engine) {
  if (!engine) invalid("engine", "expected an engine, got NULL");
  return *engine->engine;
}

}  // namespace

const char* lynx_rt_version(void) { return LYNX_RT_VERSION; }

const char* lynx_rt_last_error(void) { return last_error.text.c_str(); }

lynx_rt_status lynx_rt_last_status(void) { return last_error.status; }

const char* lynx_rt_last_error_field(void) { return last_error.field.c_str(); }

lynx_rt_engine* lynx_rt_create(const char* model_path, const lynx_rt_options* options) {
  lynx_rt_engine* out = nullptr;
  guarded([&] {
    if (!model_path) invalid("model_path", "expected a path, got NULL");
    out = new lynx_rt_engine(lynx_rt::Engine::create(model_path, lynx_rt::to_options(options)));
  });
  return out;
}

lynx_rt_status lynx_rt_close(lynx_rt_engine* engine) {
  return guarded([&] { checked(engine).close(); });
}

void lynx_rt_destroy(lynx_rt_engine* engine) {
  if (engine && engine->engine->in_step()) {
    failed(LYNX_RT_INVALID_ARGUMENT, "engine: expected a call from outside of lynx_rt_step(), got one from its callback",
           "engine");
    return;
  }
  delete engine;
}

lynx_rt_status lynx_rt_add_request(lynx_rt_engine* engine, const int32_t* token_ids, size_t num_tokens,
                                   const lynx_rt_params* params, uint64_t* request_id) {
  return lynx_rt_add_request_with_images(engine, token_ids, num_tokens, nullptr, 0, params, request_id);
}

lynx_rt_status lynx_rt_add_request_with_images(lynx_rt_engine* engine, const int32_t* token_ids, size_t num_tokens,
                                               const lynx_rt_image* images, size_t num_images, const lynx_rt_params* params,
                                               uint64_t* request_id) {
  return guarded([&] {
    if (!token_ids && num_tokens) invalid("token_ids", "expected ", num_tokens, " tokens, got NULL");
    if (!request_id) invalid("request_id", "expected where to write the request's number, got NULL");
    *request_id = checked(engine).add_request({token_ids, token_ids + num_tokens}, lynx_rt::to_params(params), nullptr,
                                              lynx_rt::to_images(images, num_images));
  });
}

lynx_rt_status lynx_rt_step(lynx_rt_engine* engine, lynx_rt_callback callback, void* user) {
  return guarded([&] {
    if (!callback) invalid("callback", "expected a function, got NULL");
    checked(engine).step([&](const lynx_rt::StepOutput& output) {
      const lynx_rt::OutputView view(output);
      lynx_rt::call_back("callback", [&] { callback(&view.get(), user); });
    });
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

lynx_rt_status lynx_rt_wait_for_work(lynx_rt_engine* engine, int64_t timeout_ms, int* has_work) {
  return guarded([&] {
    const bool work = checked(engine).wait_for_work(timeout_ms);
    if (has_work) *has_work = work;
  });
}

lynx_rt_status lynx_rt_wake(lynx_rt_engine* engine) {
  return guarded([&] { checked(engine).wake(); });
}

lynx_rt_status lynx_rt_set_expert_selection(lynx_rt_engine* engine, const char* selection) {
  return guarded([&] {
    if (!selection) invalid("expert_selection", "expected a policy, got NULL");
    checked(engine).set_expert_selection(selection);
  });
}

const char* lynx_rt_expert_selection(const lynx_rt_engine* engine) {
  thread_local std::string text;
  return guarded([&] { text = checked(engine).expert_selection(); }) == LYNX_RT_OK ? text.c_str() : nullptr;
}

const lynx_rt_model_info* lynx_rt_get_model_info(const lynx_rt_engine* engine) {
  return guarded([&] { checked(engine); }) == LYNX_RT_OK ? &engine->info.get() : nullptr;
}

const lynx_rt_stats* lynx_rt_get_stats(const lynx_rt_engine* engine) {
  const lynx_rt_stats* out = nullptr;
  guarded([&] { out = lynx_rt::make_stats(checked(engine).stats()); });
  return out;
}

void lynx_rt_free_stats(const lynx_rt_stats* stats) { lynx_rt::free_stats(stats); }

lynx_rt_status lynx_rt_reset_stats(lynx_rt_engine* engine) {
  return guarded([&] { checked(engine).reset_stats(); });
}

double lynx_rt_last_step_time(const lynx_rt_engine* engine) { return engine ? engine->engine->last_step_time() : 0; }

double lynx_rt_step_start_time(const lynx_rt_engine* engine) { return engine ? engine->engine->step_start_time() : 0; }

lynx_rt_status lynx_rt_check_integrity(const lynx_rt_engine* engine) {
  return guarded([&] { checked(engine).check_integrity(); });
}
