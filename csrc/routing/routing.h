// Plain data that flows through the four MoE stages router -> selector -> dispatch -> expert_ffn.
// T rows (tokens) of a step, E experts, k experts per token; a pair is (row t, rank j), numbered t * k + j.
#pragma once
#include <cstdint>

namespace lynx_rt {

// The experts that rows go to. The caller owns all arrays, sized for its largest batch.
struct Routing {
  int32_t* ids;               // [T, k] expert, -1 = no expert
  float* weights;             // [T, k] >= 0; 0 where id = -1
  int32_t* active;            // [E] the first num_active are the experts that some id names, ascending
  int32_t num_active;         // set by host backends; a device backend keeps the count in its own memory and leaves this alone
  int32_t* wanted = nullptr;  // [E] or null; host backends: the first num_wanted are the experts of own choices, ascending
  int32_t num_wanted = 0;
  float* wanted_mass =
      nullptr;  // [E] or null; host backends: for each of `wanted`, the own weights that rows give it, summed in order
};

// What a step does with an expert of a layer, as bits.
enum ExpertUse : uint8_t {
  kWanted = 1,  // some row's own routing has it
  kRead = 2,    // after selection some row has it
};

// Counters of one route() call.
struct SelectionStats {
  int32_t rows = 0;            // real rows
  int32_t union_before = 0;    // distinct experts of the model's own choices
  int32_t active = 0;          // distinct experts after selection
  int32_t remapped_pairs = 0;  // own choices that rows lost, replaced or dropped, summed over rows
  int32_t changed_rows = 0;    // rows that did not end with their own choice
  int32_t misses_before = 0;   // experts of the model's own choices that are not resident; 0 where no costs are given
  int32_t misses = 0;          // the same of the experts after selection
  double retained_mass = 0;    // sum over rows of (gate mass of the final choice / of the own choice), 1 at most
  bool acted = false;          // a policy was applied: acts(), and not every row is exact
  bool guard_hit = false;      // the guard discarded the result for the model's own routing
  int32_t first_bad = -1;      // t * E + e of the first score that is not finite, -1 = none; else the rest is meaningless
};

// The pairs ordered by expert.
struct DispatchPlan {
  int32_t* offsets;         // [E + 1] the pairs of expert e have the sorted positions [offsets[e], offsets[e + 1])
  int32_t* sorted_of_pair;  // [T * k] sorted position of a pair, -1 for a pair without an expert
  int32_t* pair_of_sorted;  // [T * k] the inverse; offsets[E] of them are valid; pairs of one expert ascend
};

}  // namespace lynx_rt
