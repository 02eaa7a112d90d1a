// Checks of arguments that the ops of Backend share.
#pragma once
#include <chrono>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"

namespace lynx_rt {

inline void require(bool ok, const char* op, const char* text) {
  if (!ok) invalid(op, text);
}

inline void require_shape(const WeightView& w, const char* op, const char* what, int64_t rows, int64_t cols) {
  if (w.empty() || w.rows != rows || w.cols != cols)
    invalid(op, what, ": expected ", std::vector<int64_t>{rows, cols}, ", got ", std::vector<int64_t>{w.rows, w.cols});
}

inline void require_vector(const WeightView& w, const char* op, const char* what, int64_t size) {
  if (!w.empty()) require_shape(w, op, what, 1, size);
}

// Adds the time of its lifetime and `bytes` to an op's profile. The constructor throws kInternal where a sum is pending.
class Backend::Scope {
 public:
  Scope(Backend* backend, Op op, int64_t bytes = 0) : profile_(backend->profile_[op]), start_(std::chrono::steady_clock::now()) {
    backend->require_none_pending(profile_.name);
    ++profile_.calls;
    profile_.bytes += bytes;
  }
  ~Scope() { profile_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  OpProfile& profile_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace lynx_rt
