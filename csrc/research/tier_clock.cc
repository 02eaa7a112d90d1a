#include "research/tier_clock.h"

#include <algorithm>

namespace lynx_rt {

// Gives the disk's time until now to the hints, in order.
void TierClock::read_ahead() {
  for (Hint& h : hints_) {
    if (disk_ >= now_) break;
    const double took = std::min(h.left, now_ - disk_);
    disk_ += took;
    // The rounding of sums must not leave a read unfinished.
    h.left = h.left - took < 1e-9 * times_.read ? 0 : h.left - took;
  }
  disk_ = std::max(disk_, now_);
}

void TierClock::begin_step() { read_ahead(); }

void TierClock::hint(int64_t layer, int32_t expert) { hints_.push_back({layer, expert, times_.read}); }

bool TierClock::is_hinted(int64_t layer, int32_t expert) const {
  return std::any_of(hints_.begin(), hints_.end(), [&](const Hint& h) { return h.layer == layer && h.expert == expert; });
}

TierClock::LayerResult TierClock::run(int64_t layer, int64_t num_hits, std::span<const int32_t> reads,
                                      std::span<const int32_t> used) {
  LayerResult result;
  now_ += times_.layer;
  read_ahead();
  const auto is_in = [](std::span<const int32_t> experts, int32_t e) {
    return std::binary_search(experts.begin(), experts.end(), e);
  };
  reads_.clear();
  int64_t ready = num_hits;
  for (const Hint& h : hints_) {
    if (h.layer != layer) continue;
    const bool needed = is_in(used, h.expert) && is_in(reads, h.expert);
    if (needed) {
      ++result.needed;
      result.in_time += h.left == 0;
    } else {
      result.wasted += times_.read - h.left;
    }
    if (needed && h.left == 0)
      ++ready;
    else if (needed)
      reads_.push_back({h.left, true});
    else if (is_in(reads, h.expert))
      reads_.push_back({h.left, false});
  }
  for (const int32_t e : reads)
    if (!is_hinted(layer, e)) reads_.push_back({times_.read, is_in(used, e)});
  std::erase_if(hints_, [layer](const Hint& h) { return h.layer == layer; });

  now_ += double(ready) * times_.expert;
  for (const Read& read : reads_) {
    disk_ += read.left;
    if (!read.used) {
      result.wasted += read.left;
      continue;
    }
    result.wait += std::max(0.0, disk_ - now_);
    now_ = std::max(now_, disk_) + times_.expert;
  }
  return result;
}

}  // namespace lynx_rt
