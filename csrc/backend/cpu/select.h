// Expert selection on the CPU. The contract is Backend::select() in backend.h; this header says how the points that the
// papers leave open are read.
//
// All policies (E experts, k per token, B = rows of the call):
//   own routing   the k best scores of a row, ties to the lower expert. Their weights are softmax probabilities, divided by
//                 the sum of the k where the router normalises. A row's own mass W0 is the sum of its k own weights (1 where
//                 the router normalises).
//   exact rows    vote like any other row; all their choices are admitted in addition to what is admitted without them.
//                 So making a row exact never takes an admitted expert away from the others.
//   assignment    the k best scores of the row among the admitted experts, which are k at least. A row whose own choice is
//                 admitted keeps its bits.
//   weights       W0 * softmax of the original scores over the assigned experts.
//   guard         active experts (those assigned to some row, not all that are admitted) against the union of own choices.
//   remapped_pairs counts own choices that a row lost, whether replaced or dropped.
//
// lynx (arXiv 2411.08982, threshold rule). Row t puts every expert e, not only its own k, into bin
// floor(alpha * (max z[t] - z[t, e])) in double precision; experts of bins 0 .. beta-1 get a vote, one of bin j being worth
// B^(beta-1-j). Admitted are experts with at least theta * B^(beta-1), and the first choice of every row that has no other
// expert in bin 0. If these are fewer than k, the best voted of the rest follow, ties to the lower expert.
// Sums of votes are exact 64-bit integers; beta is lowered to the largest with B^beta <= 2^62.
//
// oea (arXiv 2511.02237, simplified form). Admitted are the first k0 own choices of every row. As published, few rows
// with a small k0 can admit fewer than k experts, and every row then runs fewer than k: plain pruning, with its loss. Here
// k0 is raised for the call until k are admitted, so that every row keeps k and the active set is still a union of floors.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/moe_types.h"

namespace lynx_rt {

// Owns the scratch memory, which grows to the largest batch seen and is then reused: no allocation after that.
// Thread-safety: one run() at a time.
class Selector {
 public:
  // `selection` as parse_selection() returns it. Throws kInvalidArgument for k0 > k and for a score that is not finite;
  // nothing is written then. Cost O(T E) time and one expf per chosen expert (per score, where the router does not
  // normalise); O(T k + E) scratch.
  SelectionStats run(const float* scores, int64_t num_rows, const RouterRule& rule, const Selection& selection, Phase phase,
                     const uint8_t* exact, Routing& routing);

 private:
  struct Batch;
  void reserve(const Batch& batch);
  void route_own(const Batch& batch, Routing& own);
  void demand_lynx(const Batch& batch, const Selection& selection, const Routing& own);
  void demand_oea(const Batch& batch, const Selection& selection, const Routing& own);
  void admit(const Batch& batch, const Selection& selection, const Routing& own);
  void assign(const Batch& batch, const Routing& own);
  void weigh(const Batch& batch, Routing& routing, SelectionStats& stats) const;
  int count_used(const Batch& batch, const int32_t* ids);
  void list_used(const Batch& batch, Routing& routing) const;

  std::vector<int32_t> all_experts_;    // [E] 0, 1, ..
  std::vector<double> own_mass_;        // [T] sum of exp(score - best score) over a row's own choice
  std::vector<uint64_t> votes_;         // [E] lynx
  uint64_t top_vote_ = 0;               // value of one bin-0 vote: B^(beta - 1)
  std::vector<uint8_t> admitted_;       // [E] 1 = admitted
  std::vector<int32_t> admitted_list_;  // the admitted experts, ascending
  std::vector<int32_t> assigned_;       // [T, k] like Routing::ids
  std::vector<uint8_t> used_;           // [E] 1 = named by some id; written by count_used()
};

}  // namespace lynx_rt
