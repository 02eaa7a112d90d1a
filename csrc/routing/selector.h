// Expert selection on the CPU. The contract is Backend::route() in backend.h. This header defines each policy, and says how the
// points that the papers leave open are read.
//
// All policies (E experts, k per token, B = rows of the call, or of one isolation group):
//   isolation     A call may give each row the number of a group. Then each group is selected for as if its rows, in their order, were
//                 all of the call: B, votes, unions and guard are the group's own, and a group of one row has its own routing. Groups
//                 change nothing where policies look at single rows. Counters are of the whole call: union_before and active count the
//                 experts of all rows; guard_hit says that every group that was selected for fell back to its own routing.
//   scores        "score" below is an expert's key, "gate" the exponential of its gate in the terms of router_keys.h. For softmax
//                 routers without bias and groups, both key and gate are the logit.
//   own routing   The k best scores of a row, ties to the lower expert. Their weights are softmax probabilities (sigmoids, the
//                 probabilities of sparsemixer), times the router's scale. Where the router normalises, they are first divided by
//                 their sum, but at least min_sum. A row's own mass W0 is the sum of its k own weights (scale where the router
//                 normalises).
//   groups        An expert outside a row's groups has score -inf. The row never takes such an expert: the rank is dropped
//                 instead; sere leaves the choice alone. alias and replay follow their tables.
//   never none    A row that a policy leaves without any expert takes its first own choice, admitted or not, full or not; replay
//                 may leave rows without experts.
//   exact rows    They vote like any other row. All their choices are admitted in addition to what is admitted without them, so
//                 making a row exact never takes an admitted expert away from the others.
//   weights       W0 * softmax of the gates over the row's final experts, times (kept gate mass / own gate mass)^damp, which is at
//                 most 1. A row that ends with its own choice keeps its bits. sere and alias: the own weight of each choice moves
//                 with it; weights that meet are added.
//   guard         Compares the number of active experts (those that some row ends with) with the union of own choices. Where they
//                 are no fewer, the own routing is the result. Policies that look at single rows, and capacity, have no guard.
//   remapped_pairs counts own choices that a row lost, whether replaced or dropped.
//   dropped       A dropped rank has no expert: id -1 and weight 0.
//   sums          Sums of votes are exact 64-bit integers; sums of gates are sums of gate_mass() (gate_mass.h) of the scores.
//   resident      A call may say what each expert costs: 0 where its weights are in memory, else a read. Without `resident`, or without
//                 costs, they change nothing. With both (topk and the policies that admit), admission is no longer a limit, but what
//                 makes experts free: free are experts of cost 0 and the admitted ones (topk admits none but those of exact rows; a
//                 single row has nobody to share with, so there no policy admits more). A row ends with the k best of its scores,
//                 with `resident` nats added to those of free experts and of its own first choice, which therefore always stays. Sums
//                 are in double precision; ties to the larger score, then to the lower expert. A large value makes a row take no
//                 expert that is read for it alone, but its first choice. Ranks, refill and weights are by the scores without the
//                 nats. The guard compares misses, that is active experts that cost something, and not experts.
//
// Policies that admit experts. At least k experts are admitted, and every row ends with the k best of its scores among them.
// Experts that the row did not choose itself, and whose gate is below refill * that of its best admitted expert, are dropped.
//   lynx          (threshold rule) Row t puts every expert e, not only its own k, into bin floor(alpha * (max z[t] - z[t, e])) in
//                 double precision. Experts of bins 0 .. beta-1 get a vote; a vote of bin j is worth B^(beta-1-j). Admitted are
//                 experts with at least theta * B^(beta-1), and the first choice of every row that has no other expert in bin 0.
//                 If these are fewer than k, the experts with the most votes among the rest follow, ties to the lower expert.
//                 beta is lowered to the largest with B^beta <= 2^62.
//   oea           (simplified form) Admitted are the first k0 own choices of every row. As published, few rows with a small k0
//                 can admit fewer than k experts, and every row then runs fewer than k: plain pruning, with its loss. Here k0 is
//                 raised for the call until k are admitted, so that every row keeps k experts and the active set is still a union
//                 of first choices.
//   xshare        Admitted are the first k0 own choices of every row, then the experts with the largest sum of gates (softmax
//                 over all E) over all rows, until there are max(m, k); ties to the lower expert. m counts the first choices too;
//                 they all stay where they alone are more than that.
//   des_vote      Admitted are the max(m, k) experts with the largest sum of gates over the rows that chose them; ties to the lower
//                 expert. Experts that no row chose are never admitted.
//   cover         An expert serves a row if its score is within delta of the row's best, in double precision. Until all rows are
//                 served, the expert is admitted that serves the most rows not yet served by an admitted one; ties to the larger
//                 sum of gates (as in xshare), then to the lower expert. If these are fewer than max(m, k), the experts with the
//                 largest sums of gates follow. So every row keeps an expert with at least exp(-delta) of its best gate.
//
// Other batch-aware policies.
//   lynx_literal  Votes as in lynx, in units of one bin-0 vote: S[e] = votes / B^(beta-1). A row ends with the k best of
//                 z[t, e] + lambda * (S[e] - its own vote), computed in double precision and rounded to float32, ties to the
//                 lower expert. Where the row has no other expert in bin 0 and lost its first choice, that choice replaces the
//                 last of the k. refill drops experts as in the policies that admit.
//   sere          Experts among the first s own choices of any row are primary. From rank s on, a choice u that is not
//                 primary becomes the primary v with the largest similarity[u, v] (ties to the lower expert), unless rho > 0
//                 and that similarity is below rho. Choices of a row that become the same expert keep the first of their ranks;
//                 their other ranks are dropped.
//   capacity      No expert takes more than ceil(factor * B * k / E) rows, except for rows that would have no expert. Ranks are
//                 filled in order, and rows in order within a rank: each row gets its best expert that it has not asked yet and
//                 that has room; where none is left, the rank is dropped. First come, first served: the result depends on the
//                 order of the rows. Exact rows come first.
//
// Policies that look at single rows. They act on steps of one row too.
//   skip          A row keeps its choices up to the first whose gate is below ratio * the first choice's; the rest is dropped.
//   top_j         A row keeps its first j choices; the rest is dropped.
//   deny_rank     The choice of that rank is taken away; the best expert outside the row's choices takes the last rank.
//   alias         A choice u becomes alias[u]; choices that become the same expert meet as in sere.
//   replay        A row takes its ids of Selection::replay.
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
  // groups [T]: numbers of isolation groups; null = one group. cost [E]: 0 = resident; null = nothing is known. Throws
  // kInvalidArgument where check_selection() does and for a score that is not finite; then nothing is written. Time is O(T E)
  // (capacity: O(T E k)), with one expf per chosen expert (per score where the router does not normalise); twice that with groups.
  // Scratch memory is O(T k + E), with groups O(T E).
  SelectionStats run(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection, Phase phase,
                     const uint8_t* exact, Routing& routing, const int32_t* groups = nullptr, const uint8_t* cost = nullptr);

 private:
  struct Batch;
  SelectionStats run_group(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection, Phase phase,
                           const uint8_t* exact, Routing& routing, const uint8_t* cost);
  SelectionStats run_groups(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection,
                            Phase phase, const uint8_t* exact, Routing& routing, const int32_t* groups,
                            const uint8_t* cost);  // selector_groups.cc
  void reserve(int64_t num_rows, const RouterRule& rule);
  void make_keys(const float* scores, int64_t num_rows, const RouterRule& rule);  // selector_keys.cc
  void open_groups(const RouterRule& rule);
  void route_own(const Batch& batch, Routing& own);
  void weigh(const Batch& batch, Routing& routing, SelectionStats& stats) const;
  void move_weights(const Batch& batch, int64_t t, const int32_t* own, float* weights) const;
  int count_used(const int32_t* ids, int64_t num_pairs, int num_experts);
  int32_t count_misses(const uint8_t* cost, int num_experts) const;
  int32_t list_used(int num_experts, int32_t* experts) const;
  void list_wanted(const Batch& batch, Routing& own);

  // selector_admit.cc: policies that admit experts.
  void admit(const Batch& batch, const Routing& own);
  void count_votes(const Batch& batch, const Routing& own);
  void admit_lynx(const Batch& batch, const Routing& own);
  void admit_oea(const Batch& batch, const Routing& own);
  void sum_gates(const Batch& batch, const Routing& own);
  void admit_by_gates(const Batch& batch, const Routing& own);
  void admit_cover(const Batch& batch, const Routing& own);
  void fill(const Batch& batch, int count, const uint8_t* allowed);
  void admit_exact_rows(const Batch& batch, const Routing& own);
  void list_admitted(int num_experts);
  void assign_admitted(const Batch& batch, const Routing& own);

  // selector_resident.cc: every policy with `resident`.
  void assign_resident(const Batch& batch, const Routing& own);

  // selector_assign.cc: policies that choose for each row.
  void assign(const Batch& batch, const Routing& own);
  void assign_row(const Batch& batch, int64_t t, const int32_t* wanted, int32_t* ids);
  void assign_literal(const Batch& batch, int64_t t, const int32_t* wanted, int32_t* ids);
  void map_to_primary(const Batch& batch, const Routing& own);
  void assign_capacity(const Batch& batch, const Routing& own);

  std::vector<int32_t> all_experts_;  // [E] 0, 1, ..
  std::vector<float> keys_, gates_;   // [T, E] where the rule has keys
  std::vector<double> ungated_;       // [E] of one row: softmax probabilities or sigmoids
  std::vector<double> choice_;        // [E] of one row: ungated_ + bias
  std::vector<double> group_score_;   // [groups] of one row
  std::vector<uint8_t> open_;         // [groups] of one row: 1 = one of its best groups
  std::vector<double> own_mass_;      // [T] sum of exp(gate - best gate) over a row's own choice
  std::vector<uint64_t> votes_;       // [E] votes, or sums of gates
  std::vector<uint64_t> masses_;      // [E] exp_mass() of one row's gates
  uint64_t vote_value_[64];           // value of a vote in each bin; [0] is B^(beta - 1)
  int num_bins_ = 0;
  std::vector<uint8_t> confident_;      // [T] 1 = one expert alone is in bin 0
  std::vector<int32_t> serves_;         // [E] cover: rows that the expert serves and no admitted one does
  std::vector<uint8_t> served_;         // [T] cover: 1 = an admitted expert serves the row
  std::vector<uint8_t> admitted_;       // [E] 1 = admitted; sere: primary; with `resident`: free
  std::vector<int32_t> admitted_list_;  // the admitted experts, ascending
  std::vector<float> voted_;            // [E] lynx_literal: scores with votes, by which a row chooses
  std::vector<int32_t> target_;         // [E] sere, alias: the expert that a choice becomes
  std::vector<int32_t> load_;           // [E] capacity: rows that an expert has
  std::vector<int32_t> assigned_;       // [T, k] like Routing::ids
  std::vector<int32_t> free_;           // [k] a row's best free experts
  std::vector<uint8_t> used_;           // [E] 1 = some row has the expert; written by count_used()
  std::vector<int32_t> wanted_place_;   // [E] place in Routing::wanted

  // The rows of one isolation group, and its routing.
  std::vector<int64_t> group_order_;   // [T] rows ordered by group, those of a group in their order
  std::vector<float> group_scores_;    // [T, E]
  std::vector<uint8_t> group_exact_;   // [T]
  std::vector<int32_t> group_ids_;     // [T, k]
  std::vector<float> group_weights_;   // [T, k]
  std::vector<int32_t> group_active_;  // [E]
};

}  // namespace lynx_rt
