// The part of the store that has copies of all experts in low precision, so that steps wait for no read of their own.
#include <algorithm>

#include "tiers/expert_store.h"

namespace lynx_rt {

// Resident experts, and those that are needed, are computed in full precision, and waited for where they have not arrived; all others from
// their copies. Views change
// here alone, and in next(), so that an expert has one format in a lease.
void ExpertStore::divide_active(std::span<const int32_t> active, std::span<const int32_t> needed) {
  install_arrived();
  Layer& layer = layers_[size_t(leased_)];
  const auto cost = residency_.cost(leased_);
  for (const int32_t e : active) {
    const bool resident = cost[size_t(e)] == 0;
    if (layer.slot[size_t(e)] >= 0 || !(resident || std::binary_search(needed.begin(), needed.end(), e))) {
      hits_.push_back(e);
      continue;
    }
    counters_.late += resident;
    late_.push_back(e);
    layer.experts[size_t(e)] = file_->layout(layer.in_file, e).view(absent_);
    const auto arriving = find_arriving(leased_, e);
    if (arriving == arriving_.end()) {
      misses_.push_back(e);
      continue;
    }
    reader_.promote(slots_[size_t(*arriving)].request);
    loading_.push_back(*arriving);
    arriving_.erase(arriving);
  }
}

// Experts that are resident later stay where they are until then. What failed is read again when it is needed.
void ExpertStore::install_arrived() {
  std::erase_if(arriving_, [&](int32_t s) {
    const Slot& slot = slots_[size_t(s)];
    const ReadRequest& request = slot.request;
    const bool resident = residency_.cost(slot.layer)[size_t(slot.expert)] == 0;
    if (!request.done() || (request.state() == ReadState::kReady && !resident)) return false;
    if (request.state() == ReadState::kReady)
      install(s);
    else
      free_.push_back(s);
    return true;
  });
}

std::vector<int32_t>::iterator ExpertStore::find_arriving(int64_t layer, int32_t expert) {
  return std::find_if(arriving_.begin(), arriving_.end(),
                      [&](int32_t s) { return slots_[size_t(s)].layer == layer && slots_[size_t(s)].expert == expert; });
}

// Drops the reads of experts that the step has made leave, and begins those of experts that it has made resident, or that will be.
void ExpertStore::begin_newcomers() {
  const Layer& layer = layers_[size_t(leased_)];
  const auto cost = residency_.cost(leased_);
  const auto coming = residency_.coming(leased_);
  std::erase_if(arriving_, [&](int32_t s) {
    Slot& slot = slots_[size_t(s)];
    const bool stays = cost[size_t(slot.expert)] == 0 || std::find(coming.begin(), coming.end(), slot.expert) != coming.end();
    if (slot.layer != leased_ || stays) return false;
    reader_.cancel(slot.request);
    dropped_.push_back(s);
    return true;
  });
  const auto queue = [&](int32_t e) {
    const bool read_now = std::find(late_.begin(), late_.end(), e) != late_.end();
    if (layer.slot[size_t(e)] < 0 && !read_now && find_arriving(leased_, e) == arriving_.end()) queued_.push_back(e);
  };
  for (int32_t e = 0; e < int32_t(cost.size()); ++e)
    if (before_[size_t(e)] != 0 && cost[size_t(e)] == 0) queue(e);
  for (const int32_t e : coming) queue(e);
  begin_queued();
}

// An expert that finds no free slot is read when it is needed.
void ExpertStore::begin_queued() {
  free_dropped();
  while (!queued_.empty() && !free_.empty()) {
    arriving_.push_back(free_.back());
    begin_read(leased_, queued_.back(), ReadPriority::kPrefetch);
    queued_.pop_back();
  }
}

}  // namespace lynx_rt
