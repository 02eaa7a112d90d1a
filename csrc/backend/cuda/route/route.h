// Selector and dispatch as one launch, or as three where there are many rows; one before them where keys are not the logits: own
// routing, demand, admit, assign, weigh, active list, pairs ordered by expert. The meaning is that of Backend::route()
// (backend.h, routing/selector.h): ids, lists and integer counters equal the CPU's, weights to 1e-6. Not run on a GPU yet;
// tests/simt/test_route.cc and test_route_policies.cc run it on the CPU.
#pragma once
#include <cstddef>
#include <cstdint>

#include "backend/cuda/gemm/expert_ffn.h"
#include "backend/cuda/runtime/runtime.h"
#include "routing/policy.h"
#include "routing/routing.h"
#include "routing/rule.h"

namespace lynx_rt::cuda {

inline constexpr int kMaxRouteRows = 256;  // of one block, and of steps in which a policy may act
inline constexpr int kMaxStepRows = 65536;
inline constexpr int kMaxRouteExperts = 512;
inline constexpr int kMaxRouteTopK = 16;

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
  int32_t* sorted_of_pair;  // [T * k]
  int32_t* pair_of_sorted;  // [T * k]
  SelectionStats* stats;    // [1]
  Tile* tiles;              // [max_tiles(T * k, E, tile_rows(T))] ascending by expert, then by place; or null
  int32_t* num_tiles;       // [1], or null
  int32_t max_rows = 0;     // T
  RouterRule rule;
  Selection selection;
  Phase phase = Phase::kPrefill;
  float* scratch = nullptr;  // [2, T, E] where has_keys(rule)

  // Set by route(): what experts are chosen by, and what weights are computed from (router_keys.h). [T, E], in `scratch` or the
  // scores themselves.
  const float* keys = nullptr;
  const float* gates = nullptr;
};

// Throws kInvalidArgument for T, E or k out of range (1 <= k <= E), where check_rule() and check_selection() do, and for more
// than kMaxRouteRows rows where a policy acts. T = 0 writes the empty lists. sorted_of_pair and pair_of_sorted are also scratch memory
// while it runs. The bias of args.rule and the tables of args.selection are device memory; of replayed ids only those of real
// rows are read.
void route(const RouteArgs& args, Stream stream);

}  // namespace lynx_rt::cuda
