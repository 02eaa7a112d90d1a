#include <algorithm>

#include "backend/cuda/attention.h"
#include "base/types.h"

namespace lynx_rt::cuda {

void plan_attention(const BatchView& batch, int group, int max_partials, AttentionPlan& plan) {
  const int tile_rows = std::max(1, kTileQueries / group);
  plan.tiles.clear();
  plan.first_partial.assign(size_t(batch.num_rows) + 1, 0);
  int32_t partials = 0;
  for (int32_t s = 0; s < int32_t(batch.num_seqs); ++s) {
    const int32_t begin = batch.query_start[s], end = batch.query_start[s + 1];
    if (end - begin == 1) {
      const int32_t splits = int32_t(ceil_div(int64_t(batch.positions[begin]) + 1, kSplitKeys));
      const bool is_split = splits > 1 && splits <= max_partials - partials;
      if (!is_split) plan.tiles.push_back({begin, 1, s, -1, 0});
      for (int32_t split = 0; is_split && split < splits; ++split) plan.tiles.push_back({begin, 1, s, split, partials++});
    }
    for (int32_t row = begin; end - begin > 1 && row < end; row += tile_rows)
      plan.tiles.push_back({row, std::min(tile_rows, end - row), s, -1, 0});
    for (int32_t row = begin; row < end; ++row) plan.first_partial[size_t(row) + 1] = partials;
  }
}

}  // namespace lynx_rt::cuda
