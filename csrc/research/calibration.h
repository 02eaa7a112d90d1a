// Compares the experts of a layer pair by pair: every expert runs on every token.
#pragma once
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "lynx_rt/engine.h"
#include "model/decoder.h"

namespace lynx_rt {

// A MoeObserver that compares the experts of each layer on the CPU and adds the results to `sums`.
class ExpertComparer {
 public:
  ExpertComparer(Backend& backend, const ModelConfig& config, ExpertMetric metric, int num_threads, int64_t max_rows,
                 ExpertComparison& sums);
  void operator()(const MoeInput& in);

 private:
  void compare_row(int64_t t, int64_t rows);

  Backend& backend_;
  ExpertMetric metric_;
  Activation activation_;
  int64_t num_experts_, hidden_, top_k_;
  ThreadPool pool_;
  std::vector<float> outputs_;  // [E, rows, H]
  std::vector<double> of_row_;  // [rows, E, E]
  ExpertComparison& sums_;
};

}  // namespace lynx_rt
