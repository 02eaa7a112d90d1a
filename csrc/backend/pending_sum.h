// The weighted sum over a row's experts, which expert_ffn() may leave to the op that reads the row next.
#pragma once
#include <cstdint>
#include <utility>

namespace lynx_rt {

// x[t] (+)= sum over a row's choices j of weights[t, j] * partial[t * k + j], in order of j, choices with id -1 skipped. The sum starts
// at 0 and is added to x at the end. All arrays are in the backend's memory.
struct ExpertSum {
  const float* partial = nullptr;  // [T * k, H]; null = nothing is left to add
  const int32_t* ids = nullptr;    // [T, k]
  const float* weights = nullptr;  // [T, k]; null = all 1
  int top_k = 0;
  bool accumulate = true;  // false: x[t] is the sum alone
};

// The sum that a call of expert_ffn() left, for the norm that reads the same rows, or for combine(). It is used once; until then
// every other op throws.
class [[nodiscard]] PendingSum {
 public:
  PendingSum() = default;  // nothing is pending
  PendingSum(PendingSum&& o) noexcept : x_(std::exchange(o.x_, nullptr)), num_rows_(o.num_rows_), sum_(o.sum_) {}
  PendingSum& operator=(PendingSum&& o) noexcept {
    x_ = std::exchange(o.x_, nullptr);
    num_rows_ = o.num_rows_;
    sum_ = o.sum_;
    return *this;
  }

 private:
  friend class Backend;
  PendingSum(float* x, int64_t num_rows, const ExpertSum& sum) : x_(x), num_rows_(num_rows), sum_(sum) {}

  float* x_ = nullptr;  // the rows to add to; null = nothing is pending
  int64_t num_rows_ = 0;
  ExpertSum sum_;
};

}  // namespace lynx_rt
