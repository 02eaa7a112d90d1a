// Experts in slots of a fast memory, where all of them lie in a slow one that steps read as well: bookkeeping alone, without memory.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "tiers/residency.h"

namespace lynx_rt {

// Residents are chosen by routing alone (Residency). The place of an expert follows with a delay: it is moved to a slot
// in the background, and used from there from the end of the step on in which the move is found to be done. Results are the same wherever it
// lies, so that the time of moves changes none.
//
// Thread-safety: calls come from one thread at a time. Test: tests/cpp/test_expert_slots.cc.
class ExpertSlots {
 public:
  struct Move {
    int64_t layer;
    int32_t expert, slot;
  };
  // Counters since construction or reset_counts(). Uses are counted by residency, except for `absent`.
  struct Counts {
    int64_t hits = 0, misses = 0;                // uses of residents, and of others
    int64_t decode_hits = 0, decode_misses = 0;  // those of them in steps that learn
    int64_t late = 0;                            // hits that were not in a slot yet
    int64_t moved = 0;                           // experts whose moves began
  };

  // Slots are divided evenly between the layers. Throws kUnsupported (field expert_policy) for a rule that needs copies in low precision,
  // gate mass, or the future; the errors of Residency.
  ExpertSlots(const ResidencyRule& rule, int64_t num_slots, int64_t num_layers, int64_t num_experts, ExpertHistory lists = {});

  int64_t num_layers() const { return int64_t(slot_.size()); }
  // Returns for each expert of a layer 0 where it is resident, else 1. Constant until note().
  std::span<const uint8_t> cost(int64_t layer) const { return residency_.cost(layer); }
  // Returns the slot where an expert lies, -1 = it is in the slow memory alone. Constant until end_step().
  int32_t slot(int64_t layer, int32_t expert) const { return slot_[size_t(layer)][size_t(expert)]; }

  // Takes what a layer's step has used, and the experts of the model's own routing, both rising. `learn`: see Residency::update().
  void note(int64_t layer, std::span<const int32_t> used, std::span<const int32_t> wanted, bool learn);
  // Ends a step: experts that are no longer resident leave their slots, and those that have arrived take theirs. `arrived`: the moves that
  // were returned last are done. Returns the moves to begin now, into slots that nothing lies in; none while others are on their way.
  std::span<const Move> end_step(bool arrived);
  bool moving() const { return !moves_.empty(); }
  // Whether end_step(), or note() before it, has changed cost() or slot() of the layer.
  bool changed(int64_t layer) const { return changed_[size_t(layer)] != 0; }

  int64_t num_resident() const;
  const Counts& counts() const { return counts_; }
  void reset_counts() { counts_ = {}; }
  // Verifies that every slot has one owner, and that no expert that is not resident lies in one. Throws kInternal. Call it after end_step().
  void check_integrity() const;

 private:
  Residency residency_;
  int64_t num_slots_;
  std::vector<std::vector<int32_t>> slot_;  // [layers, E]
  std::vector<int32_t> free_;
  std::vector<Move> moves_;               // on their way
  std::vector<uint8_t> changed_, noted_;  // [layers] by the last end_step(), and by note() since then
  Counts counts_;
};

}  // namespace lynx_rt
