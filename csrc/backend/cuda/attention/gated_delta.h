// Gated DeltaNet. Contract: Backend::gated_delta_rule(). Sequences that only pad a batch to the size of a graph have slot -1: their rows
// get zeros, and no state is touched.
//
// Order of the arithmetic, which is independent of the other rows and of how a sequence is cut: the convolution from the oldest input on;
// sums over dk in four parts, each of every fourth element in order, which are then added as (0 + 1) + (2 + 3).
#pragma once
#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/runtime/runtime.h"

namespace lynx_rt::cuda {

inline constexpr int64_t kMaxDeltaKeyDim = 256;

// All pointers are to device memory; conv, rate, dt_bias and norm are float32. `rounded`: null, or [T, padded_columns(vh * dv)].
struct GatedDeltaCall {
  GatedDeltaArgs args;
  StateView states;
  const int32_t* query_start;  // [S + 1]
  const int32_t* slots;        // [S]
  int num_rows, num_seqs;
  float* out;         // [T, vh * dv]
  uint16_t* rounded;  // bf16 of out, or null
};
// Throws kUnsupported for more than kMaxDeltaKeyDim columns of a key head.
void gated_delta_rule(const GatedDeltaCall& call, Stream stream);

// Runs the states through the rows: the middle of gated_delta_rule(), where q, k, v, beta and decay are what x holds. kScan: u = beta * v, and
// out = S^T q + skip * v, skip [vh] (Mamba2).
enum class Recurrence { kDelta, kDeltaByChannel, kScan };
void run_states(const GatedDeltaCall& call, Recurrence rule, const float* skip, Stream stream);

}  // namespace lynx_rt::cuda
