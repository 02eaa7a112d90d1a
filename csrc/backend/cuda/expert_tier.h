// Experts that do not fit the device's memory. All lie in pinned host memory, from where kernels can read them; those that are used often
// are copied to slots on the device. Kernels find an expert through its entry in the layer's table, wherever it lies, so that results
// are the same as with all experts on the device. Not run on a GPU yet; tests/simt/test_engine_tiers.cc runs it on the CPU.
//
// Tables and costs stay in place, so that recorded steps stay valid. They change between two steps alone: the host changes its mirror of
// them once a step has ended, and a copy in the order of the stream brings it to the device before the next step. Experts are copied to
// slots on a stream of their own, into memory that no table names.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend_options.h"
#include "backend/cuda/gemm/expert_ffn.h"
#include "backend/cuda/runtime/runtime.h"
#include "tiers/expert_slots.h"
#include "tiers/expert_store.h"

namespace lynx_rt::cuda {

class ExpertTier {
 public:
  // Allocates all memory but that of the experts in host memory. Throws kOutOfMemory (field expert_memory); the errors of ExpertSlots.
  ExpertTier(const ExpertTierOptions& options, Stream stream);
  ~ExpertTier();
  ExpertTier(const ExpertTier&) = delete;

  int64_t num_experts() const { return options_.num_experts; }
  // Returns pinned host memory that kernels may use, for the experts of a layer. Throws kOutOfMemory.
  char* allocate_home(int64_t bytes);
  // Adds the next layer. homes [E]: entries of experts in allocate_home()'s memory; bytes [E]: from gate_up on. Returns the layer's table
  // on the device, which start() fills.
  const ExpertEntry* add_layer(std::vector<ExpertEntry> homes, std::vector<int64_t> bytes);
  // Writes all tables, and copies experts that are resident from the start. Waits for both.
  void start();

  const uint8_t* cost(int64_t layer) const { return at<uint8_t>(device_.get(), layer, cost_at_); }  // [E], on the device
  uint8_t* uses(int64_t layer) const {
    return static_cast<uint8_t*>(uses_.get()) + layer * options_.num_experts;
  }  // see RouteArgs
  void read_uses(int64_t num_layers);             // queues the copy to the host
  void end_step(int64_t num_layers, bool learn);  // after a wait for the stream: takes the uses, and changes residents and tables

  ExpertStoreStats stats() const;
  void reset_stats();
  void check_integrity() const { slots_.check_integrity(); }

 private:
  struct Home {
    ExpertEntry entry;
    int64_t bytes;
  };
  template <class T>
  T* at(void* base, int64_t layer, int64_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(base) + layer * layer_bytes_ + offset);
  }
  char* slot(int32_t number) const { return static_cast<char*>(slot_memory_.get()) + number * options_.slot_bytes; }
  void change_tables();

  const ExpertTierOptions options_;
  const Stream stream_;
  ExpertSlots slots_;
  OwnedStream owned_copies_;
  Stream copies_;
  Event copied_;
  DeviceMemory slot_memory_, device_, uses_;  // device_ [layers]: a layer's table, then its costs
  PinnedMemory mirror_, host_uses_;
  int64_t cost_at_ = 0, layer_bytes_ = 0;
  std::vector<PinnedMemory> home_memory_;
  std::vector<std::vector<Home>> homes_;  // [layers, E]
  std::vector<int32_t> used_, wanted_;    // scratch of end_step()
  int64_t bytes_read_ = 0;                // by kernels from host memory, and by copies
};

}  // namespace lynx_rt::cuda
