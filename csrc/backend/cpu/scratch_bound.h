// How much memory the CPU's ops take for themselves.
#pragma once
#include <algorithm>
#include <cstdint>

namespace lynx_rt {

// Sizes of the largest step, in rows and values.
struct ScratchSizes {
  int64_t rows = 0;     // T
  int64_t top_k = 0;    // k
  int64_t hidden = 0;   // H
  int64_t width = 0;    // I
  int64_t mlp = 0;      // width of the dense MLP or the shared expert
  int64_t columns = 0;  // of the widest row that enters a linear layer
};

// Returns an upper bound of the bytes. Ops keep the memory that their largest step needed; no form of a row is longer than float32.
inline int64_t scratch_bytes(const ScratchSizes& s) {
  // expert_ffn and mlp share the rows that enter gate and up, those that enter down, and the results.
  const int64_t experts = s.rows * s.top_k * (2 * s.hidden + s.width), mlp = s.rows * (2 * s.hidden + s.mlp);
  const int64_t linear = 2 * s.rows * s.columns;  // rows packed for weights of two kinds
  return 4 * (std::max(experts, mlp) + linear);
}

}  // namespace lynx_rt
