// States of constant size per sequence, for layers whose memory of a sequence does not grow with it. A slot holds the states of
// all layers for one sequence; a snapshot is a slot too, see state_snapshots.h.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/device_array.h"

namespace lynx_rt {

// Thread-safety: none; the engine's lock covers it.
class StateCache {
 public:
  // layer_bytes[l] is the size of layer l's state of one sequence; 0 = the layer has none. Where no layer has one, the cache
  // takes no memory.
  StateCache(Backend& backend, std::span<const int64_t> layer_bytes, int64_t num_slots);

  static int64_t slot_bytes(std::span<const int64_t> layer_bytes);  // bytes that a slot takes
  bool empty() const { return slot_bytes_ == 0; }                   // no layer has a state
  int64_t num_slots() const { return int64_t(is_held_.size()); }
  int64_t num_free() const { return int64_t(free_.size()); }
  int64_t bytes() const { return num_slots() * slot_bytes_; }

  int32_t allocate(int32_t from = -1);  // a slot with a copy of another slot, or of zeros; -1 where none is free
  void release(int32_t slot);           // -1: does nothing
  void clear(int32_t slot);             // sets the slot's states to zeros
  void copy(int32_t from, int32_t to);
  // Returns the layer's state in a slot, 64-byte aligned, in the backend's memory; null where the layer has none. The next slot's
  // state lies stride(layer) bytes further.
  void* state(int64_t layer, int32_t slot) const;
  int64_t stride(int64_t layer) const;
  std::span<const StateView> views() const { return views_; }  // of each layer; empty where no layer has a state

  // Throws kInternal, saying what, where something is inconsistent. `held` has one entry for every slot of requests and snapshots.
  void check_integrity(std::span<const int32_t> held) const;

 private:
  struct Layer {
    int64_t bytes = 0;
    DeviceArray<char> states;  // [slots, stride]
  };

  Backend& backend_;
  std::vector<Layer> layers_;
  std::vector<StateView> views_;
  int64_t slot_bytes_;
  std::vector<char> zeros_;
  std::vector<int32_t> free_;  // the last entry is taken next
  std::vector<uint8_t> is_held_;
};

}  // namespace lynx_rt
