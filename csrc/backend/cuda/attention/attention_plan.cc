#include <algorithm>

#include "backend/cuda/attention/attention.h"
#include "base/types.h"

namespace lynx_rt::cuda {

void plan_attention(const BatchView& batch, int group, int max_partials, AttentionPlan& plan) {
  const int tile_rows = std::max(1, kTileQueries / group);
  plan.tiles.clear();
  plan.split_sequences.clear();
  plan.first_partial.assign(size_t(batch.num_rows) + 1, 0);
  int32_t partials = 0, most_splits = 0;
  for (int32_t s = 0; s < int32_t(batch.num_seqs); ++s) {
    const int32_t begin = batch.query_start[s], end = batch.query_start[s + 1];
    int32_t splits = 0;
    if (end - begin == 1) splits = int32_t(ceil_div(int64_t(batch.positions[begin]) + 1, kSplitKeys));
    if (splits > 1 && splits <= max_partials - partials) {
      plan.split_sequences.push_back(s);
      partials += splits;
      most_splits = std::max(most_splits, splits);
    } else {
      for (int32_t row = begin; row < end; row += tile_rows)
        plan.tiles.push_back({row, std::min(tile_rows, end - row), s, -1, 0});
    }
    for (int32_t row = begin; row < end; ++row) plan.first_partial[size_t(row) + 1] = partials;
  }
  for (int32_t back = 1; back <= most_splits; ++back)
    for (const int32_t s : plan.split_sequences) {
      const int32_t row = batch.query_start[s], first = plan.first_partial[size_t(row)],
                    split = plan.first_partial[size_t(row) + 1] - first - back;
      if (split >= 0) plan.tiles.push_back({row, 1, s, split, first + split});
    }
}

}  // namespace lynx_rt::cuda
