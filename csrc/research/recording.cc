#include "research/recording.h"

#include <algorithm>

namespace lynx_rt {

void RoutedExpertsTable::store(const std::vector<int32_t>& ids, std::span<const int64_t> slots) {
  const int64_t width = num_layers_ * top_k_;
  for (size_t t = 0; t < slots.size(); ++t) {
    std::vector<int16_t>& page = pages_[size_t(slots[t] / block_size_)];
    page.resize(size_t(block_size_ * width));
    std::transform(ids.begin() + int64_t(t) * width, ids.begin() + int64_t(t + 1) * width,
                   page.begin() + slots[t] % block_size_ * width, [](int32_t id) { return int16_t(id); });
  }
}

RoutedExperts RoutedExpertsTable::gather(std::span<const int32_t> blocks, int64_t begin, int64_t end) const {
  const int64_t width = num_layers_ * top_k_;
  RoutedExperts out{end - begin, num_layers_, top_k_, {}};
  out.ids.reserve(size_t((end - begin) * width));
  for (int64_t p = begin; p < end; ++p) {
    const auto from = pages_[size_t(blocks[size_t(p / block_size_)])].begin() + p % block_size_ * width;
    out.ids.insert(out.ids.end(), from, from + width);
  }
  return out;
}

}  // namespace lynx_rt
