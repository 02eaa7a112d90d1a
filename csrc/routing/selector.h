// Expert selection on the CPU. The contract is Backend::route() in backend.h; this header says what each policy does, and how the
// points that the papers leave open are read.
//
// All policies (E experts, k per token, B = rows of the call):
//   scores        "score" below is an expert's key, "gate" the exponential of its gate in the terms of router_keys.h: both the
//                 logit for softmax routers without bias and groups.
//   own routing   the k best scores of a row, ties to the lower expert. Their weights are softmax probabilities (sigmoids, the
//                 probabilities of sparsemixer), divided by their sum, but at least min_sum, where the router normalises; times
//                 its scale. A row's own mass W0 is the sum of its k own weights (scale where the router normalises).
//   groups        An expert outside a row's groups has score -inf. The row takes none such, that rank is dropped instead; sere
//                 leaves the choice alone. alias and replay are as their tables say.
//   never none    A row that a policy leaves without any expert takes its first own choice, admitted or not, full or not; replay
//                 may leave rows without.
//   exact rows    vote like any other row; all their choices are admitted in addition to what is admitted without them.
//                 So making a row exact never takes an admitted expert away from the others.
//   weights       W0 * softmax of the gates over the experts that the row ends with, times (kept gate mass / own gate mass)^damp,
//                 which is at most 1. A row that ends with its own choice keeps its bits. sere and alias: the own weight of each
//                 choice moves with it, weights that meet are added.
//   guard         (not for policies that look at single rows, nor for capacity) active experts, those that some row ends with,
//                 against the union of own choices: where they are no fewer, the own routing is the result.
//   remapped_pairs counts own choices that a row lost, whether replaced or dropped.
//   dropped       a rank without an expert has id -1 and weight 0.
//   sums          of votes are exact 64-bit integers, those of gates are of gate_mass() (gate_mass.h) of the scores.
//
// Policies that admit experts. Every row ends with the k best of its scores among the admitted, which are k at least; but those
// that it did not choose itself and whose gate is below refill * that of its best admitted expert are dropped.
//   lynx          (threshold rule) Row t puts every expert e, not only its own k, into bin floor(alpha * (max z[t] - z[t, e])) in
//                 double precision; experts of bins 0 .. beta-1 get a vote, one of bin j being worth B^(beta-1-j). Admitted are
//                 experts with at least theta * B^(beta-1), and the first choice of every row that has no other expert in bin 0.
//                 If these are fewer than k, the best voted of the rest follow, ties to the lower expert. beta is lowered to the
//                 largest with B^beta <= 2^62.
//   oea           (simplified form) Admitted are the first k0 own choices of every row. As published, few rows with a small k0
//                 can admit fewer than k experts, and every row then runs fewer than k: plain pruning, with its loss. Here k0 is
//                 raised for the call until k are admitted, so that every row keeps k and the active set is still a union of
//                 floors.
//   xshare        Admitted are the first k0 own choices of every row, then the experts with the largest sum of gates (softmax
//                 over all E) over all rows, until there are max(m, k); ties to the lower expert. m counts the first choices too,
//                 which stay where they alone are more.
//   des_vote      The max(m, k) experts with the largest sum of gates over the rows that chose them; ties to the lower expert.
//                 Experts that nobody chose are never admitted.
//   cover         An expert serves a row if its score is within delta of the row's best, in double precision. Again and again,
//                 the expert that serves the most rows which nothing admitted serves is admitted; ties to the larger sum of gates
//                 (as of xshare), then to the lower expert; until all rows are served. If these are fewer than max(m, k), the
//                 largest sums of gates follow. So every row keeps an expert with at least exp(-delta) of its best gate.
//
// Other batch-aware policies.
//   lynx_literal  Votes as of lynx, in units of one bin-0 vote: S[e] = votes / B^(beta-1). A row ends with the k best of
//                 z[t, e] + lambda * (S[e] - its own vote), computed in double precision and rounded to float32, ties to the
//                 lower expert; where the row has no other expert in bin 0 and lost its first choice, that replaces the last of
//                 the k. refill as above.
//   sere          Experts among the first s own choices of any row are primary. From rank s on, a choice u that is not
//                 primary becomes the primary v with the largest similarity[u, v] (ties to the lower expert), unless rho > 0
//                 and that is below it. A row's choices that meet become one, at the first of their ranks; the others are
//                 dropped.
//   capacity      No expert takes more than ceil(factor * B * k / E) rows, but for rows that would be left with none. Ranks are
//                 filled in order, and rows in order within a rank: each gets the best expert that the row has not asked yet and
//                 that has room; where none is left it is dropped. First come, first served: the result depends on the order of
//                 the rows. Exact rows come first.
//
// Policies that look at single rows. They act on single rows too.
//   skip          A row's choices up to the first whose gate is below ratio * the first choice's; the rest is dropped.
//   top_j         The first j choices; the rest is dropped.
//   deny_rank     The choice of that rank is taken away; the best expert outside the row's choices takes the last rank.
//   alias         A choice u becomes alias[u]; choices that meet become one, as of sere.
//   replay        The ids of Selection::replay.
#pragma once
#include <cstdint>
#include <vector>

#include "routing/policy.h"
#include "routing/routing.h"
#include "routing/rule.h"

namespace lynx_rt {

// Owns the scratch memory, which grows to the largest batch seen and is then reused: no allocation after that.
// Thread-safety: one run() at a time.
class Selector {
 public:
  // Throws kInvalidArgument where check_selection() does and for a score that is not finite; nothing is written then. Cost
  // O(T E) time (capacity: O(T E k)) and one expf per chosen expert (per score, where the router does not normalise); O(T k + E)
  // scratch.
  SelectionStats run(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection, Phase phase,
                     const uint8_t* exact, Routing& routing);

 private:
  struct Batch;
  void reserve(int64_t num_rows, const RouterRule& rule);
  void make_keys(const float* scores, int64_t num_rows, const RouterRule& rule);  // selector_keys.cc
  void open_groups(const RouterRule& rule);
  void route_own(const Batch& batch, Routing& own);
  void weigh(const Batch& batch, Routing& routing, SelectionStats& stats) const;
  void move_weights(const Batch& batch, int64_t t, const int32_t* own, float* weights) const;
  int count_used(const Batch& batch, const int32_t* ids);
  void list_used(const Batch& batch, Routing& routing) const;

  // selector_admit.cc: policies that admit experts.
  void admit(const Batch& batch, const Routing& own);
  void count_votes(const Batch& batch, const Routing& own);
  void admit_lynx(const Batch& batch, const Routing& own);
  void admit_oea(const Batch& batch, const Routing& own);
  void sum_gates(const Batch& batch, const Routing& own);
  void admit_by_gates(const Batch& batch, const Routing& own);
  void admit_cover(const Batch& batch, const Routing& own);
  void fill(const Batch& batch, int count, const uint8_t* allowed);
  void assign_admitted(const Batch& batch, const Routing& own);

  // selector_assign.cc: policies that choose for each row.
  void assign(const Batch& batch, const Routing& own);
  void assign_row(const Batch& batch, int64_t t, const int32_t* wanted, int32_t* ids);
  void assign_literal(const Batch& batch, int64_t t, const int32_t* wanted, int32_t* ids);
  void map_to_primary(const Batch& batch, const Routing& own);
  void assign_capacity(const Batch& batch, const Routing& own);

  std::vector<int32_t> all_experts_;  // [E] 0, 1, ..
  std::vector<float> keys_, gates_;   // [T, E] where the rule has keys
  std::vector<double> ungated_;       // [E] of one row: softmax probabilities or sigmoids
  std::vector<double> choice_;        // [E] of one row: those with the bias
  std::vector<double> group_score_;   // [groups] of one row
  std::vector<uint8_t> open_;         // [groups] of one row: 1 = among its best
  std::vector<double> own_mass_;      // [T] sum of exp(gate - best gate) over a row's own choice
  std::vector<uint64_t> votes_;       // [E] votes, or sums of gates
  std::vector<uint64_t> masses_;      // [E] of one row's gates
  uint64_t vote_value_[64];           // of a vote in each bin; [0] is B^(beta - 1)
  int num_bins_ = 0;
  std::vector<uint8_t> confident_;      // [T] 1 = one expert alone is in bin 0
  std::vector<int32_t> serves_;         // [E] cover: rows that the expert would serve and nothing admitted does
  std::vector<uint8_t> served_;         // [T] cover
  std::vector<uint8_t> admitted_;       // [E] 1 = admitted; sere: primary
  std::vector<int32_t> admitted_list_;  // the admitted experts, ascending
  std::vector<float> voted_;            // [E] lynx_literal: what a row chooses by
  std::vector<int32_t> target_;         // [E] sere, alias: what a choice becomes
  std::vector<int32_t> load_;           // [E] capacity: rows that an expert has
  std::vector<int32_t> assigned_;       // [T, k] like Routing::ids
  std::vector<uint8_t> used_;           // [E] 1 = named by some id; written by count_used()
};

}  // namespace lynx_rt
