// Selection under a latency target: "slo:tpot_ms=20,policy=lynx" turns a policy up only while steps would take longer than asked.
//
// The cost model is that of memory-bound decoding (arXiv 2511.02237, section 3) with a term for experts on a disk: a step takes
// c0 + b * n + m * r seconds, n = experts computed and r = experts read from the disk (misses), summed over layers. c0 and b are fitted
// by least squares to recent decode-only steps without the time that they waited for the disk; b is pulled towards the time that one
// expert's share of the step's bytes would take. m is the time waited for a miss. Every step, at any level, also counts the experts that
// the model's own routing would have computed (the union) and missed. Each level is expected to take its usual share of both, and the
// next step runs at the weakest level that is expected to meet the target. Levels depend on measured time, so with a governor two runs
// of the same requests may differ.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lynx_rt {

// A parsed text "slo:...".
struct SloPlan {
  double target_seconds = 0;        // per decode-only step, which gives every running request a token
  std::string text;                 // canonical form
  std::vector<std::string> levels;  // selection texts, from "topk" to the strongest
};

bool is_slo(const std::string& text);
// Parses "slo:" and its keys: tpot_ms (> 0, required), policy (lynx, oea; topk and cover are turned up by their key resident). Parts
// for layers ("@0=topk") may follow and apply at all levels. Throws kInvalidArgument.
SloPlan parse_slo(const std::string& text, int top_k);

class Governor {
 public:
  Governor(double target_seconds, int num_levels);

  int level() const { return level_; }

  struct Step {
    double seconds = 0;
    double union_before = 0, active = 0;   // experts, summed over layers
    double expert_share = 1;               // the experts' share of the step's bytes
    double misses_before = 0, misses = 0;  // of the union and of the active experts those on the disk
    double wait_seconds = 0;               // time of `seconds` in which the step waited for the disk
  };
  // Records the step that ran at level(), and chooses the level of the next one.
  void observe(const Step& step);

  struct Report {
    double target_seconds = 0;
    double fixed_seconds = 0, seconds_per_expert = 0, seconds_per_miss = 0;  // c0, b and m
    int level = 0;
    std::vector<int64_t> steps_at_level;
    int64_t steps_over_target = 0;
  };
  Report report() const;
  void reset_report();

 private:
  void fit(const Step& step);
  void learn_share(std::vector<double>& shares, double part, double whole);
  double expected_seconds(int level) const;

  double target_;
  int level_ = 0;
  // [levels] shares of the union, and of its misses, that a level takes; level 0 has 1.
  std::vector<double> share_, miss_share_;
  std::vector<bool> measured_;                           // [levels] whether the level was used
  double union_ = 0, union_misses_ = 0;                  // recent means of union_before and misses_before
  double misses_ = 0, waited_ = 0;                       // decaying sums
  double weight_ = 0, n_ = 0, t_ = 0, nn_ = 0, nt_ = 0;  // decaying sums for the fit
  double prior_ = 0;                                     // estimate of b from the step's bytes
  double c0_ = 0, b_ = 0;
  Report report_;
};

}  // namespace lynx_rt
