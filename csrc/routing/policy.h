// Selection policies and their parameters: how a layer changes the experts that a batch's rows choose.
#pragma once
#include <cstdint>

namespace lynx_rt {

// The kind of a step's rows, as the scheduler states it; it is never guessed from shapes.
enum class Phase : uint8_t { kPrefill, kMixed, kDecodeOnly };

// The policies; selector.h defines each.
enum class Policy : uint8_t {
  kTopk,         // the model's own routing; with `resident`, rows prefer experts in memory (arXiv 2412.00099)
  kLynx,         // LYNX AffinityBinning, threshold rule (arXiv 2411.08982)
  kLynxLiteral,  // LYNX's votes, added to the row's scores
  kOea,          // Opportunistic Expert Activation, simplified form (arXiv 2511.02237)
  kXshare,       // XShare: a budget, filled by summed gates (arXiv 2602.07265)
  kDesVote,      // DES-Vote: a budget, filled by gates summed over own choices (arXiv 2602.00879)
  kCover,        // few experts, among which every row has one nearly as good as its best; this project's, docs/study.md
  kSere,         // SERE: secondary choices move to the most similar primary expert (arXiv 2602.07616)
  kSkip,         // NAEE's dynamic skipping: choices far below the first are dropped (arXiv 2402.14800)
  kTopJ,         // the first j choices
  kDenyRank,     // the choice of one rank is denied, to measure its worth
  kCapacity,     // a cap on an expert's rows; the overflow goes to a row's next choice (GShard, arXiv 2006.16668)
  kAlias,        // merged experts: a table says which expert replaces which (MC-SMoE, arXiv 2310.01334)
  kReplay,       // recorded ids
};
inline constexpr int kNumPolicies = int(Policy::kReplay) + 1;

// Whether the policy admits experts, among which every row takes its best.
constexpr bool admits(Policy p) {
  return p == Policy::kLynx || p == Policy::kOea || p == Policy::kXshare || p == Policy::kDesVote || p == Policy::kCover;
}
// Whether the policy knows `resident`.
constexpr bool has_resident(Policy p) { return admits(p) || p == Policy::kTopk; }
// Whether the policy knows `refill` and `damp`.
constexpr bool has_refill(Policy p) { return has_resident(p) || p == Policy::kLynxLiteral; }

// A layer's policy and its parameters. Plain data, which kernels take by value.
struct Selection {
  Policy policy = Policy::kTopk;
  double alpha = 6;         // lynx, lynx_literal: bins per nat of affinity gap (bin width 1 / alpha); > 0
  int beta = 4;             // lynx, lynx_literal: bins that vote; 1..16, and lowered where beta * log2(B) + 1 would pass 63
  double theta = 1;         // lynx: votes that admit an expert, in units of one undisputed bin-0 vote; >= 0; 0 = identity
  double lambda = 1;        // lynx_literal: nats that one undisputed bin-0 vote adds to a score; >= 0; 0 = identity
  int k0 = 1;               // oea, xshare: choices per row that are always kept; oea 1..k (k = identity), xshare 0..k
  double budget = 0.5;      // xshare, des_vote, cover (key m): admitted experts; below 1 the share of E, else a whole number
  double delta = 0.1;       // cover: nats from a row's best score within which an expert serves the row; >= 0
  double refill = 0;        // has_refill(): the least share of the row's best gate with which an expert that it did not choose
                            // is run; 0 (always) .. 1
  double damp = 0;          // has_refill(): weights sum to W0 * (kept gate mass / own gate mass)^damp; 0 (W0) .. 1 (the gates)
  double resident = 0;      // has_resident(): nats by which a row prefers an expert that is not read for it; 0 (off) .. 1000
  int primary = 1;          // sere (key s): choices per row that stay; 1..k (k = identity)
  double rho = 0;           // sere: an expert moves only to one of at least this similarity; > 1 = identity
  double ratio = 0.5;       // skip: a choice stays while its gate is at least ratio * the first one's; 0 (identity) .. 1
  int j = 1;                // top_j: choices that stay; 1..k (k = identity)
  int rank = 0;             // deny_rank: 0..k-1
  double factor = 1;        // capacity: an expert takes ceil(factor * B * k / E) rows; > 0
  bool all_phases = false;  // the policy acts in prefill and mixed steps too (key phase: decode, all)
  // The layer's tables, in the backend's memory.
  const float* similarity = nullptr;  // sere: [E, E]
  const int32_t* alias = nullptr;     // alias: [E] 0..E-1
  const int32_t* replay = nullptr;    // replay: [T, k] 0..E-1, each once in a row, or -1
};

// Whether a row's result depends on that row alone. Such selections have no guard.
constexpr bool is_per_row(const Selection& s) {
  if (s.policy == Policy::kTopk) return !(s.resident > 0);
  return s.policy == Policy::kSkip || s.policy == Policy::kTopJ || s.policy == Policy::kDenyRank || s.policy == Policy::kAlias ||
         s.policy == Policy::kReplay;
}
// Whether the own choices replace a result that reads no fewer experts than they do.
constexpr bool has_guard(const Selection& s) { return !is_per_row(s) && s.policy != Policy::kCapacity; }
// Whether `s` may change the routing of a step. Other rows are not all that a choice may depend on: with `resident`, topk acts too.
constexpr bool acts(const Selection& s, Phase phase, int64_t rows) {
  if (s.policy == Policy::kTopk && is_per_row(s)) return false;
  return (s.all_phases || phase == Phase::kDecodeOnly) && rows >= (is_per_row(s) || s.resident > 0 ? 1 : 2);
}
// Returns the number of experts that `budget` allows.
constexpr int budget_experts(const Selection& s, int num_experts) {
  const double m = s.budget < 1 ? s.budget * num_experts : s.budget;
  return m >= num_experts ? num_experts : m < 1 ? 1 : int(m);
}
// Throws kInvalidArgument naming `field` and the parameter that does not fit a model with E experts, k per token.
void check_selection(const Selection& selection, int num_experts, int top_k, const char* field = "selection");

}  // namespace lynx_rt
