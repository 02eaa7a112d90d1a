// Residency says which experts are resident: bookkeeping alone, without memory, reads or a clock. It is a function of the history of routing, so that
// nothing that depends on it (selection with residents, above all) can depend on the speed of a disk.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lynx_rt {

enum class ResidencyPolicy : uint8_t {
  kLfu,     // keeps the experts with the most uses; a use counts decay^n after n steps, absent experts' uses too
  kLru,     // the last used ones; ties by number of uses
  kLfru,    // the most uses (without decay) per step since the last one
  kScore,   // as kLfu, where a use counts as much as the gate mass that rows give the expert. Source: arXiv 2511.15015 (DynaExq)
  kRandom,  // any
  kStatic,  // those of a list
  kNone,    // none: the floor of what caching can do
  kRing,    // none, and every expert of a layer is read, used or not. Source: arXiv 2205.10034 (SE-MoE)
  kBelady,  // those whose next use is nearest, which only a simulation knows: the ceiling
  kHiLo,    // as kLfu, but experts are exchanged every few steps alone, a few at a time. Source: arXiv 2511.15015 (DynaExq)
};

struct ResidencyRule {
  ResidencyPolicy policy = ResidencyPolicy::kLfu;
  double decay = 0.99;  // lfu, score, hi_lo: per step, in (0, 1]
  uint64_t seed = 0;    // random
  std::string file;     // static: who has the lists
  // Absent experts are computed from copies of low precision, which are always in memory, and none is read for a step: the changes of
  // residents alone are reads. Source: arXiv 2411.01433 (HOBBIT).
  bool low = false;
  // With `low`: which absent experts are read all the same, and which choices of them are dropped: the thresholds of routing/miss_rule.h.
  // Below 0: none is read; 1: none is dropped.
  double full = -1, skip = 1;
  int64_t period = 64;       // hi_lo: steps of a layer between exchanges, >= 1
  double hysteresis = 1.25;  // hi_lo: a newcomer needs more than so many times the uses of the expert that leaves for it, >= 1
  int64_t inflight = 4;      // hi_lo: newcomers of a layer in an exchange at most, >= 1
};

// Parses "lfu:decay=0.99", "score:decay=0.99", "lru", "lfru", "random:seed=1", "static:file=F" (or "static", whose lists come from
// elsewhere), "none", each of which takes "miss=low", with or without "full=0.6" and
// "skip=0.9" ("lfu:decay=0.99,miss=low,full=0.6,skip=0.9"), "hi_lo:decay=0.99,period=64,hysteresis=1.25,inflight=4",
// "ring", "belady". Throws kInvalidArgument (field expert_policy).
ResidencyRule parse_residency(const std::string& text);

// Returns how many experts of each layer may be resident when `slots` are divided evenly: the first layers get the rest, none gets more
// than it has experts. One pool for all layers would not do: a pass through the layers evicts what the next pass needs first.
std::vector<int64_t> uniform_quota(int64_t slots, int64_t num_layers, int64_t num_experts);

// Returns the quota of each layer for `residents`: below 1 the share of its experts that is resident (rounded down), else their number.
// Throws kInvalidArgument (the given field).
std::vector<int64_t> quota_of(double residents, int64_t num_layers, int64_t num_experts, const char* field);

// Experts by layer and step: [layers][steps][any number of them, rising].
using ExpertHistory = std::vector<std::vector<std::vector<int32_t>>>;

// The experts used in a step of a layer are one access: all that are not resident are read, and only then those that stay are chosen,
// among them and the residents. So an expert that is read need not become resident. Test: tests/tiers/test_residency.py.
class Residency {
 public:
  struct Counts {
    int64_t used = 0, hits = 0, reads = 0, inserted = 0, evicted = 0;
  };

  // quota: [layers]. lists: static: one step per layer, whose first `quota` experts stay; belady: the recording. Throws kInvalidArgument.
  Residency(const ResidencyRule& rule, std::vector<int64_t> quota, int64_t num_experts, ExpertHistory lists = {});

  // Returns for each expert of a layer what choosing it costs: 0 resident, 1 a read. Changes with update() alone.
  std::span<const uint8_t> cost(int64_t layer) const { return layers_[size_t(layer)].cost; }
  // Takes the experts that a step has used, rising, and chooses those that stay. Experts that came and went can be read from cost().
  void update(int64_t layer, std::span<const int32_t> used) { update(layer, used, used); }
  // Takes a step whose choice selection changed: `wanted`, rising, are the experts of the model's own routing. Uses are counted and dated
  // by them, so that residents do not stay because selection prefers them. mass: the gate mass that rows give each of `wanted`; only
  // score needs it. Throws kInvalidArgument where `wanted` is not what belady's recording has.
  void update(int64_t layer, std::span<const int32_t> used, std::span<const int32_t> wanted, std::span<const float> mass = {});
  // Returns the experts that will be resident from a later step on, which is the time that their reads have. hi_lo alone has any.
  std::span<const int32_t> coming(int64_t layer) const { return layers_[size_t(layer)].coming; }
  // Counts uses beyond those of steps, [E], those of a prompt for example, and keeps the experts that then have the most, wherever they
  // are: it is for a step that reads all experts anyway. lfu alone. Source: arXiv 2510.05497.
  void seed(int64_t layer, std::span<const float> uses);
  const Counts& counts(int64_t layer) const { return layers_[size_t(layer)].counts; }

 private:
  struct Layer {
    std::vector<uint8_t> cost;                // [E]
    std::vector<double> uses;                 // [E] with decay
    std::vector<int64_t> last;                // [E] step of the last use, -1 = never
    std::vector<std::vector<int64_t>> steps;  // belady: [E] of its uses
    std::vector<int32_t> coming;              // hi_lo
    int64_t step = 0;
    Counts counts;
  };
  double key(const Layer& layer, size_t index, int32_t expert) const;
  void choose(int64_t index);
  void exchange(Layer& layer, int64_t quota);

  ResidencyRule rule_;
  std::vector<int64_t> quota_;
  ExpertHistory lists_;
  std::vector<Layer> layers_;
  std::vector<int32_t> kept_;  // scratch of choose()
  std::vector<double> keys_;
};

}  // namespace lynx_rt
