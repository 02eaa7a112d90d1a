// Selector and dispatch as one launch: own routing, demand, admit, assign, weigh, active list, pairs ordered by expert.
// The meaning is that of Backend::select() and Backend::dispatch() (backend.h, cpu/select.h): ids, lists and integer counters
// equal the CPU's, weights to 1e-6. Not run on a GPU yet; tests/simt/test_route.cc runs it on the CPU.
#pragma once
#include <cstddef>
#include <cstdint>

#include "backend/cuda/launch.h"
#include "backend/moe_types.h"

namespace lynx_rt::cuda {

inline constexpr int kMaxRouteRows = 256;
inline constexpr int kMaxRouteExperts = 512;
inline constexpr int kMaxRouteTopK = 16;

// SelectionStats as the device writes them.
struct RouteStats {
  SelectionStats selection;
  int32_t first_bad;  // t * E + e of the first score that is not finite, -1 = none; all else is then in range but meaningless
};

// All pointers are device memory. T is max_rows, the rows of the launch; the first *num_rows are real. The others, which pad the
// batch to the size of a captured graph, do not vote and get id -1, weight 0 and no row.
struct RouteArgs {
  const float* scores;      // [T, E] in
  const int32_t* num_rows;  // [1] in, 0..T
  const uint8_t* exact;     // [T] in, or null
  int32_t* ids;             // [T, k] out, and so on; see Routing and DispatchPlan
  float* weights;           // [T, k]
  int32_t* active;          // [E]
  int32_t* num_active;      // [1]
  int32_t* offsets;         // [E + 1]
  int32_t* row_of_pair;     // [T * k]
  int32_t* pair_of_row;     // [T * k]
  RouteStats* stats;        // [1]
  int32_t max_rows = 0;     // T
  RouterRule rule;
  Selection selection;
  Phase phase = Phase::kPrefill;
};

// Throws kInvalidArgument for T, E or k out of range (1 <= k <= E) and for k0 outside 1..k. T = 0 writes the empty lists.
void route(const RouteArgs& args, Stream stream);

}  // namespace lynx_rt::cuda
