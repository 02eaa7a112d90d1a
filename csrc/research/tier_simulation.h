// Recorded routing of a model whose experts are partly on a disk: what is read, and how long steps take by a virtual clock.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "research/simulation.h"
#include "research/tier_clock.h"
#include "tiers/residency.h"

namespace lynx_rt {

struct TierSetup {
  ResidencyRule rule;    // any policy, also those that an engine has not
  double residents = 0;  // as quota_of() takes it
  ExpertHistory lists;   // static: see Residency
  TierTimes times;
  bool plec = false;  // ExpertFlow's memory in place of `rule`: see plec.h
  // Uses [N, L, E] that count when a row is first run: see Residency::seed(). Rows of zeros: none. Null: none at all.
  const float* seeds = nullptr;
  // Guesses of what is used: scores [N, L, E] of the recorded rows, each of whose `num_guesses` best experts are read ahead as
  // ExpertPrefetch does it, when the layer `distance` before knows its experts (the first layers: when the step begins). -inf: not
  // guessed. Null: nothing is read ahead.
  const float* guesses = nullptr;
  int64_t num_guesses = 0, distance = 1;
};

struct TierSimulation {
  TierSimulation(int64_t num_steps, int64_t num_layers);
  // [steps, L]: experts that were used; of these not resident; read (ring: all); guessed; guessed and used; asked for
  // ahead; of these needed; of these there before the layer knew its experts.
  std::vector<int32_t> used, misses, reads, guessed, guessed_used, ahead, needed, in_time;
  std::vector<double> seconds, wait, wasted;  // [steps]: see TierClock::LayerResult
  std::vector<double> disk;                   // [steps] seconds that the disk read
  std::vector<double> retained_mass;          // [steps] sum over layers and rows
};

// Runs steps as simulate() does, with a residency that selection sees. Residents and counts are those of an engine that decodes the
// same rows, because the code is the same. belady: knows what the selection uses; with the key `resident` it goes by the rows' own
// choices instead, since what is used then depends on what is resident. Throws as simulate() and Residency do (fields expert_policy,
// residents).
TierSimulation simulate_tier(const RecordedRows& rows, const std::string& selection, std::span<const int64_t> order,
                             std::span<const int64_t> offsets, const TierSetup& setup);

}  // namespace lynx_rt
