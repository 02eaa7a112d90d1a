#include "engine/state_cache.h"

#include <algorithm>

#include "base/error.h"
#include "base/types.h"

namespace lynx_rt {

namespace {

int64_t padded(int64_t bytes) { return round_up(bytes, 64); }

}  // namespace

StateCache::StateCache(Backend& backend, std::span<const int64_t> layer_bytes, int64_t num_slots)
    : backend_(backend), slot_bytes_(slot_bytes(layer_bytes)) {
  if (empty()) return;
  for (const int64_t bytes : layer_bytes) {
    Layer& layer = layers_.emplace_back();
    layer.bytes = bytes;
    if (bytes > 0) layer.states = DeviceArray<char>(backend, checked_mul(num_slots, padded(bytes), "states"), "states");
    views_.push_back({layer.states.get(), padded(bytes)});
  }
  zeros_.resize(size_t(padded(*std::max_element(layer_bytes.begin(), layer_bytes.end()))));
  is_held_.resize(size_t(num_slots));
  for (int64_t slot = num_slots; slot-- > 0;) free_.push_back(int32_t(slot));
}

int64_t StateCache::slot_bytes(std::span<const int64_t> layer_bytes) {
  int64_t sum = 0;
  for (const int64_t bytes : layer_bytes) sum += padded(bytes);
  return sum;
}

int64_t StateCache::stride(int64_t layer) const { return layers_.empty() ? 0 : padded(layers_[size_t(layer)].bytes); }

void* StateCache::state(int64_t layer, int32_t slot) const {
  return stride(layer) ? layers_[size_t(layer)].states.get() + slot * stride(layer) : nullptr;
}

int32_t StateCache::allocate(int32_t from) {
  if (free_.empty()) return -1;
  const int32_t slot = free_.back();
  free_.pop_back();
  is_held_[size_t(slot)] = 1;
  if (from < 0)
    clear(slot);
  else
    copy(from, slot);
  return slot;
}

void StateCache::release(int32_t slot) {
  if (slot < 0) return;
  if (!is_held_[size_t(slot)]) fail(ErrorCode::kInternal, "state_cache", "state slot ", slot, " is released twice");
  is_held_[size_t(slot)] = 0;
  free_.push_back(slot);
}

void StateCache::clear(int32_t slot) {
  for (int64_t l = 0; l < int64_t(layers_.size()); ++l) backend_.write(state(l, slot), zeros_.data(), stride(l));
}

void StateCache::copy(int32_t from, int32_t to) {
  for (int64_t l = 0; l < int64_t(layers_.size()); ++l) backend_.copy(state(l, to), state(l, from), stride(l));
}

void StateCache::check_integrity(std::span<const int32_t> held) const {
  std::vector<int32_t> count(is_held_.size(), 0);
  for (const int32_t slot : held) {
    if (slot < 0 || slot >= num_slots())
      fail(ErrorCode::kInternal, "state_cache", "state slot ", slot, " of ", num_slots(), " is held");
    ++count[size_t(slot)];
  }
  for (const int32_t slot : free_) {
    if (is_held_[size_t(slot)]) fail(ErrorCode::kInternal, "state_cache", "free state slot ", slot, " is marked as held");
    ++count[size_t(slot)];
  }
  for (size_t slot = 0; slot < count.size(); ++slot)
    if (count[slot] != 1)
      fail(ErrorCode::kInternal, "state_cache", "state slot ", slot, " is held or free ", count[slot], " times");
}

}  // namespace lynx_rt
