// All activations of a model, allocated once for its largest step.
#pragma once
#include <cstdint>
#include <utility>

#include "backend/backend.h"
#include "model/model_config.h"

namespace lynx_rt {

// An array in a backend's memory. Move-only; the backend must outlive it.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(Backend& backend, int64_t count, const char* what)
      : backend_(&backend),
        bytes_(checked_mul(count, int64_t(sizeof(T)), what)),
        data_(static_cast<T*>(backend.allocate(bytes_, what))) {}
  ~DeviceArray() {
    if (data_) backend_->release(data_, bytes_);
  }
  DeviceArray(DeviceArray&& o) noexcept : backend_(o.backend_), bytes_(o.bytes_), data_(std::exchange(o.data_, nullptr)) {}
  DeviceArray& operator=(DeviceArray&& o) noexcept {
    std::swap(backend_, o.backend_);
    std::swap(bytes_, o.bytes_);
    std::swap(data_, o.data_);
    return *this;
  }
  T* get() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  int64_t bytes_ = 0;
  T* data_ = nullptr;
};

// What a step leaves of every MoE layer, not just of the last.
struct StepRecording {
  bool routed_experts = false;
  bool router_logits = false;
};

// T = max_rows, L = max_logit_rows; sizes in elements. M = MoE layers where they are recorded, else 1: every layer has a part of
// its own, which begins at layer * the rows of the step.
struct Workspace {
  Workspace(Backend& backend, const ModelConfig& config, int64_t max_rows, int64_t max_logit_rows, StepRecording recording);
  int64_t bytes() const;

  DeviceArray<float> x;              // [T, H] residual stream
  DeviceArray<float> normed;         // [T, H]
  DeviceArray<float> qkv;            // [T, (A + 2 G) * D]; MLA: q [T, A * D]
  DeviceArray<float> attended;       // [T, A * Dv]
  DeviceArray<float> q_a, kv_a;      // MLA: [T, q_lora_rank], [T, L + R]; L = kv_lora_rank, R = rope.dim
  DeviceArray<float> latent_q;       // MLA: [T, A * (L + R)]
  DeviceArray<float> latent_out;     // MLA: [T, A * L]
  DeviceArray<float> scores;         // [M, T, E] router logits
  DeviceArray<int32_t> ids;          // [M, T, k]
  DeviceArray<float> weights;        // [T, k]
  DeviceArray<int32_t> active;       // [E]
  DeviceArray<int32_t> offsets;      // [E + 1]
  DeviceArray<int32_t> sorted_of_pair;  // [T * k]
  DeviceArray<int32_t> pair_of_sorted;  // [T * k]
  DeviceArray<float> logit_rows;     // [L, H]
};

}  // namespace lynx_rt
