// States of a fixed size per sequence, beside the pages: what a layer keeps whose memory of a sequence does not grow with it.
// Slots, each with one sequence's states of all layers; a snapshot is a slot too.
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
  // layer_bytes[l]: of layer l's state of one sequence; 0 = it has none. Where no layer has any, the cache takes no memory.
  StateCache(Backend& backend, std::span<const int64_t> layer_bytes, int64_t num_slots);

  static int64_t slot_bytes(std::span<const int64_t> layer_bytes);  // what a slot takes
  bool empty() const { return slot_bytes_ == 0; }                   // no layer has a state
  int64_t num_slots() const { return int64_t(is_held_.size()); }
  int64_t num_free() const { return int64_t(free_.size()); }
  int64_t bytes() const { return num_slots() * slot_bytes_; }

  int32_t allocate();          // a slot of zeros; -1 where none is free
  void release(int32_t slot);  // -1 = nothing
  void clear(int32_t slot);    // to zeros
  void copy(int32_t from, int32_t to);
  // Layer l's state in a slot, 64-byte aligned, in the backend's memory; the next slot's lies stride(l) bytes on. Null where the
  // layer has none.
  void* state(int64_t layer, int32_t slot) const;
  int64_t stride(int64_t layer) const;

  // `held`: the slots that requests hold, one entry each. Throws kInternal saying what is inconsistent.
  void check_integrity(std::span<const int32_t> held) const;

 private:
  struct Layer {
    int64_t bytes = 0;
    DeviceArray<char> states;  // [slots, stride]
  };

  Backend& backend_;
  std::vector<Layer> layers_;
  int64_t slot_bytes_;
  std::vector<char> zeros_;
  std::vector<int32_t> free_;  // the last one is taken next
  std::vector<uint8_t> is_held_;
};

}  // namespace lynx_rt
