#include "gil.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace lynx_rt {

namespace {

constexpr auto kLongestWait = std::chrono::milliseconds(500);
std::atomic<int> calls_without_gil = 0;

void wait_for_calls() {
  const auto end = std::chrono::steady_clock::now() + kLongestWait;
  while (calls_without_gil.load() > 0 && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace

ReleaseGil::ReleaseGil() {
  calls_without_gil.fetch_add(1);
  state_ = PyEval_SaveThread();
}

ReleaseGil::~ReleaseGil() {
  calls_without_gil.fetch_sub(1);
  hold_if_ended([this] { PyEval_RestoreThread(state_); });
}

AcquireGil::AcquireGil() : had_it_(PyGILState_Check()) {
  if (!had_it_) calls_without_gil.fetch_sub(1);
  hold_if_ended([this] { state_ = PyGILState_Ensure(); });
}

AcquireGil::~AcquireGil() {
  PyGILState_Release(state_);
  if (!had_it_) calls_without_gil.fetch_add(1);
}

void wait_for_calls_at_exit() { Py_AtExit(wait_for_calls); }

}  // namespace lynx_rt
