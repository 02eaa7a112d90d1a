#include "research/calibration.h"

#include <algorithm>
#include <cmath>

namespace lynx_rt {

namespace {

constexpr int64_t kRows = 128;  // rows for which the outputs of all experts are held at once
constexpr int kLanes = 16;      // partial sums, so that the loops below become vector instructions

// Returns the sum of term(a[i], b[i]) over n.
template <class Term>
double sum_over(const float* a, const float* b, int64_t n, Term term) {
  float lanes[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += term(a[i + j], b[i + j]);
  double sum = 0;
  for (const float lane : lanes) sum += lane;
  for (int64_t i = whole; i < n; ++i) sum += term(a[i], b[i]);
  return sum;
}

double squared_distance(const float* a, const float* b, int64_t n) {
  return sum_over(a, b, n, [](float x, float y) { return (x - y) * (x - y); });
}

double dot(const float* a, const float* b, int64_t n) {
  return sum_over(a, b, n, [](float x, float y) { return x * y; });
}

}  // namespace

ExpertComparer::ExpertComparer(Backend& backend, const ModelConfig& config, ExpertMetric metric, int num_threads,
                               int64_t max_rows, ExpertComparison& sums)
    : backend_(backend),
      metric_(metric),
      activation_(config.ffn.activation),
      num_experts_(config.num_experts),
      hidden_(config.hidden_size),
      top_k_(config.num_experts_per_tok),
      pool_(num_threads),
      outputs_(size_t(num_experts_ * std::min(kRows, max_rows) * hidden_)),
      of_row_(size_t(std::min(kRows, max_rows) * num_experts_ * num_experts_)),
      sums_(sums) {}

void ExpertComparer::operator()(const MoeInput& in) {
  for (int64_t pair = 0; pair < in.num_rows * top_k_; ++pair) ++sums_.usage[size_t(in.layer * num_experts_ + in.ids[pair])];
  for (int64_t begin = 0; begin < in.num_rows; begin += kRows) {
    const int64_t rows = std::min(kRows, in.num_rows - begin);
    std::fill(outputs_.begin(), outputs_.end(), 0.f);
    for (int64_t e = 0; e < num_experts_; ++e)
      backend_.mlp(Activations(in.x + begin * hidden_, rows, hidden_), in.experts[e], {}, outputs_.data() + e * rows * hidden_,
                   activation_);
    pool_.parallel_for(rows, [&](int64_t t, int) { compare_row(t, rows); });
    // Rows are added one after the other, so that the sums do not depend on the threads.
    double* sums = sums_.sums.data() + in.layer * num_experts_ * num_experts_;
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t i = 0; i < num_experts_ * num_experts_; ++i) sums[i] += of_row_[size_t(t * num_experts_ * num_experts_ + i)];
  }
}

void ExpertComparer::compare_row(int64_t t, int64_t rows) {
  const int64_t n = num_experts_;
  double* to = of_row_.data() + t * n * n;
  const auto output = [&](int64_t e) { return outputs_.data() + (e * rows + t) * hidden_; };
  const bool cosine = metric_ == ExpertMetric::kCosine;
  for (int64_t i = 0; i < n; ++i) to[i * n + i] = cosine ? dot(output(i), output(i), hidden_) : 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) {
      double value = 0;
      if (!cosine) {
        value = squared_distance(output(i), output(j), hidden_);
      } else if (const double norms = std::sqrt(to[i * n + i] * to[j * n + j]); norms > 0) {
        value = dot(output(i), output(j), hidden_) / norms;
      }
      to[i * n + j] = to[j * n + i] = value;
    }
  }
  for (int64_t i = 0; cosine && i < n; ++i) to[i * n + i] = 1;
}

}  // namespace lynx_rt
