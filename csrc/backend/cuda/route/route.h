// Selector and dispatch: own routing, demand, admit, assign, weigh, active list, pairs ordered by expert. One launch, or three where
// there are many rows; one more before them where keys are not the logits. The contract is that of Backend::route() (backend.h,
// routing/selector.h): ids, lists and integer counters equal the CPU's, weights to 1e-6. This code has not run on a GPU yet;
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

inline constexpr int kMaxRouteRows = 256;  // most rows of one block, and of steps in which a policy may act
inline constexpr int kMaxStepRows = 65536;
inline constexpr int kMaxRouteExperts = 512;
inline constexpr int kMaxRouteTopK = 16;

// All pointers are to device memory. T is max_rows, the rows of the launch, of which the first *num_rows are real. The others pad the
// batch to the size of a captured graph: they do not vote, have id -1 and weight 0, and are in no list.
struct RouteArgs {
  const float* scores;      // [T, E] in
  const int32_t* num_rows;  // [1] in, 0..T
  const uint8_t* exact;     // [T] in, or null
  const int32_t* groups;    // [T] in: numbers of isolation groups from 0 on without a gap; null = one group
  const uint8_t* cost;      // [E] in: 0 = resident, else a read; null = nothing is known
  int32_t* ids;             // [T, k] out; this and the outputs below: see Routing and DispatchPlan
  float* weights;           // [T, k]
  int32_t* active;          // [E]
  int32_t* num_active;      // [1]
  int32_t* offsets;         // [E + 1]
  int32_t* sorted_of_pair;  // [T * k]
  int32_t* pair_of_sorted;  // [T * k]
  SelectionStats* stats;    // [1]
  Tile* tiles;              // [max_tiles(T * k, E, tile_rows(T))] ascending by expert, then by place; or null
  int32_t* num_tiles;       // [1], or null
  uint8_t* uses;            // [E] bits of ExpertUse, or null
  int32_t max_rows = 0;     // T
  RouterRule rule;
  Selection selection;
  Phase phase = Phase::kPrefill;
  float* scratch = nullptr;  // [2, T, E] where has_keys(rule)

  // Set by route(): [T, E] in `scratch`, or the scores themselves. Experts are chosen by `keys`, weights are computed from `gates`
  // (routing/router_keys.h).
  const float* keys = nullptr;
  const float* gates = nullptr;
};

// Throws kInvalidArgument for T, E or k out of range (1 <= k <= E), where check_rule() or check_selection() throws, and for more
// than kMaxRouteRows rows where a policy acts. T = 0 writes empty lists. sorted_of_pair and pair_of_sorted are also used as scratch
// memory. The bias of args.rule and the tables of args.selection are in device memory; replayed ids are read for real rows only.
void route(const RouteArgs& args, Stream stream);

}  // namespace lynx_rt::cuda
