// The experts of a layer, in the form that ops take.
#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/expert_weights.h"
#include "tiers/expert_store.h"

namespace lynx_rt {

// The address and format of each expert of a layer, as the views of its matrices. Formats may differ from expert to expert, and
// between gate and down. Backend::expert_table() makes the table and checks it once, so that a step need not.
class ExpertTable {
 public:
  ExpertTable() = default;

  int64_t size() const { return int64_t(all().size()); }
  const ExpertWeights& operator[](int64_t expert) const { return all()[size_t(expert)]; }
  std::span<const ExpertWeights> all() const { return store_ ? store_->experts(layer_) : std::span(experts_); }
  int64_t hidden_size() const { return all()[0].gate.cols; }  // H
  int64_t width() const { return all()[0].gate.rows; }        // I
  bool has_biases() const { return !all()[0].gate_bias.empty(); }
  // The array that the backend's kernels read instead of the views, one entry per expert. Its address never changes, so that
  // recorded steps may use it. Null on the CPU.
  const void* entries() const { return entries_; }
  // The store that has the experts, null where all are in memory. The caller of an op leases the layer's active experts from it.
  ExpertStore* store() const { return store_; }

 private:
  friend class Backend;
  ExpertTable(std::vector<ExpertWeights> experts, const void* entries) : experts_(std::move(experts)), entries_(entries) {}

  ExpertTable(ExpertStore* store, int64_t layer) : store_(store), layer_(layer) {}

  std::vector<ExpertWeights> experts_;  // empty with a store
  ExpertStore* store_ = nullptr;
  int64_t layer_ = 0;  // of the store
  const void* entries_ = nullptr;
};

}  // namespace lynx_rt
