// ExpertFlow's memory of experts, driven by guesses of what a step uses.
#pragma once
#include "research/tier_simulation.h"

namespace lynx_rt {

// Runs steps with the cache of arXiv 2410.17954 ("predictive locality-aware expert caching") on a virtual clock. The paper's body was not
// at hand; what its abstract and its authors say is read as follows.
//  - One pool of slots. When a step begins, all of its layers are guessed. Slots are divided between the layers to come, in proportion to
//    the number of experts guessed for each; the likeliest guesses that fit are read ahead, first layer first.
//  - A layer's slots are free as soon as it is done: the division is made anew between the layers that are left.
//  - When a layer knows its experts, guesses that it does not use go to the low-priority queue, which is evicted first, and what it uses
//    but does not find goes to the high-priority queue, which is read before everything else.
//  - Next after the low-priority queue, experts of layers that are done are evicted, then those of layers to come that nobody guessed,
//    those used longest ago first. What a layer is about to use is not evicted; where its experts fill all slots, others pass through.
// Counts: misses are used experts that were not in memory when the step began; of these `needed` were guessed, and `in_time` were there when
// their layer knew its experts. setup.rule and setup.distance are not used. Throws kInvalidArgument (field prefetch) without guesses.
// Test: tests/tiers/test_plec.py.
TierSimulation simulate_plec(RecordedRouter& router, const TierSetup& setup);

}  // namespace lynx_rt
