// Plain data that flows through the four MoE stages router -> selector -> dispatch -> expert_ffn.
// T rows (tokens) of a step, E experts, k experts per token; a pair is (token t, slot j), numbered t * k + j.
#pragma once
#include <cstdint>
#include <string>

namespace lynx_rt {

// What a step's rows are, as the scheduler states it; never guessed from shapes.
enum class Phase : uint8_t { kPrefill, kMixed, kDecodeOnly };

enum class Policy : uint8_t {
  kTopk,  // the model's own routing
  kLynx,  // LYNX AffinityBinning, threshold rule (arXiv 2411.08982; readings of the open points in cpu/select.h)
  kOea,   // Opportunistic Expert Activation, simplified form (arXiv 2511.02237)
};

// Parameters of the batch-aware policies.
struct Selection {
  Policy policy = Policy::kTopk;
  double alpha = 8;  // lynx: bins per nat of affinity gap (bin width 1 / alpha); > 0
  int beta = 4;      // lynx: number of bins that vote; 1..16, and lowered where beta * log2(B) + 1 would pass 63
  double theta = 1;  // lynx: votes that admit an expert, in units of one undisputed bin-0 vote; >= 0; 0 = identity
  int k0 = 1;        // oea: choices per token that are always kept; 1..k (k = identity), raised where too few rows vote
};

// "topk", "lynx", "lynx:alpha=8,beta=4,theta=1", "oea:k0=2"; "off" and "" mean topk. Throws kInvalidArgument naming the
// unknown policy or key and those that exist.
Selection parse_selection(const std::string& text);
std::string to_string(const Selection& selection);  // parse_selection's canonical form

// The model's own routing rule (ecosystem notes 2.3: kinds S1 and S2).
struct RouterRule {
  int num_experts = 0;    // E
  int top_k = 0;          // k
  bool norm_topk = true;  // divide the chosen softmax probabilities by their sum
};

// Which experts a row goes to. All arrays are the caller's, sized for its largest batch.
struct Routing {
  int32_t* ids;        // [T, k] expert, -1 = no expert
  float* weights;      // [T, k] >= 0; 0 where id = -1
  int32_t* active;     // [E] the first num_active are the experts that some id names, ascending
  int32_t num_active;  // on the host; a backend on a device keeps the count there and leaves this alone
};

// Counters of one route() call.
struct SelectionStats {
  int32_t rows = 0;            // real rows
  int32_t union_before = 0;    // distinct experts of the model's own choices
  int32_t active = 0;          // distinct experts after selection
  int32_t remapped_pairs = 0;  // chosen experts that differ from the model's own choice (as sets, per row, summed)
  double retained_mass = 0;    // sum over rows of (gate mass of the final choice / gate mass of the own choice)
  bool acted = false;          // a batch-aware policy changed or could have changed this call (phase, rows, policy)
  bool guard_hit = false;      // never-worse guard: result discarded for the model's own routing
  int32_t first_bad = -1;      // t * E + e of the first score that is not finite, -1 = none; else the rest is meaningless
};

// The pairs ordered by expert.
struct DispatchPlan {
  int32_t* offsets;      // [E + 1] expert e's rows are [offsets[e], offsets[e + 1]) of row_of_pair's range
  int32_t* row_of_pair;  // [T * k] row of a pair, -1 for a pair without an expert
  int32_t* pair_of_row;  // [T * k] inverse; the first offsets[E] are valid; ascending inside each expert
};

}  // namespace lynx_rt
