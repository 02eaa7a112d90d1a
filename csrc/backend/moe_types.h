// Plain data that flows through the four MoE stages router -> selector -> dispatch -> expert_ffn.
// T rows (tokens) of a step, E experts, k experts per token; a pair is (token t, slot j), numbered t * k + j.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lynx_rt {

// What a step's rows are, as the scheduler states it; never guessed from shapes.
enum class Phase : uint8_t { kPrefill, kMixed, kDecodeOnly };

// What a layer does with a batch's own choices; cpu/select.h defines each policy.
enum class Policy : uint8_t {
  kTopk,         // the model's own routing
  kLynx,         // LYNX AffinityBinning, threshold rule (arXiv 2411.08982)
  kLynxLiteral,  // the same votes, added to the row's scores
  kOea,          // Opportunistic Expert Activation, simplified form (arXiv 2511.02237)
  kXshare,       // XShare: a budget, filled by summed gates (arXiv 2602.07265)
  kDesVote,      // DES-Vote: a budget, filled by gates summed over own choices (arXiv 2602.00879)
  kCover,        // few experts, among which every row finds one nearly as good as its best; ours, docs/study.md
  kSere,         // SERE: secondary choices move to the most similar primary expert (arXiv 2602.07616)
  kSkip,         // NAEE's dynamic skipping: choices far below the first are dropped (arXiv 2402.14800)
  kTopJ,         // the first j choices
  kDenyRank,     // the choice of one rank is denied, for measuring what it is worth
  kCapacity,     // a cap on the rows of an expert, overflow to the row's next choice (GShard, arXiv 2006.16668)
  kAlias,        // merged experts: a table says which expert stands in for which (MC-SMoE, arXiv 2310.01334)
  kReplay,       // recorded ids
};
inline constexpr int kNumPolicies = int(Policy::kReplay) + 1;

// Whether a row's result depends on that row alone. Such policies act on single rows too and have no guard.
constexpr bool is_per_row(Policy p) {
  return p == Policy::kTopk || p == Policy::kSkip || p == Policy::kTopJ || p == Policy::kDenyRank || p == Policy::kAlias ||
         p == Policy::kReplay;
}
// Whether the policy admits experts, among which every row takes its best.
constexpr bool admits(Policy p) {
  return p == Policy::kLynx || p == Policy::kOea || p == Policy::kXshare || p == Policy::kDesVote || p == Policy::kCover;
}
// Whether the policy knows `refill` and `damp`.
constexpr bool has_refill(Policy p) { return admits(p) || p == Policy::kLynxLiteral; }
// Whether a result that reads no fewer experts than the own choices is discarded for them.
constexpr bool has_guard(Policy p) { return !is_per_row(p) && p != Policy::kCapacity; }

// One layer's policy and its parameters. Plain data: kernels take it by value.
struct Selection {
  Policy policy = Policy::kTopk;
  double alpha = 6;         // lynx, lynx_literal: bins per nat of affinity gap (bin width 1 / alpha); > 0
  int beta = 4;             // lynx, lynx_literal: bins that vote; 1..16, and lowered where beta * log2(B) + 1 would pass 63
  double theta = 1;         // lynx: votes that admit an expert, in units of one undisputed bin-0 vote; >= 0; 0 = identity
  double lambda = 1;        // lynx_literal: nats that one undisputed bin-0 vote adds to a score; >= 0; 0 = identity
  int k0 = 1;               // oea, xshare: choices per row that are always kept; oea 1..k (k = identity), xshare 0..k
  double budget = 0.5;      // xshare, des_vote, cover (key m): admitted experts; below 1 the share of E, else a whole number
  double delta = 0.1;       // cover: nats from a row's best score within which an expert serves the row; >= 0
  double refill = 0;        // has_refill(): the share of the row's best gate from which on an expert that it did not choose is
                            // worth running; 0 (always) .. 1
  double damp = 0;          // has_refill(): weights sum to W0 * (kept gate mass / own gate mass)^damp; 0 (W0) .. 1 (the gates)
  int primary = 1;          // sere (key s): choices per row that stay; 1..k (k = identity)
  double rho = 0;           // sere: an expert moves only to one of at least this similarity; > 1 = identity
  double ratio = 0.5;       // skip: a choice stays while its gate is at least ratio * the first one's; 0 (identity) .. 1
  int j = 1;                // top_j: choices that stay; 1..k (k = identity)
  int rank = 0;             // deny_rank: 0..k-1
  double factor = 1;        // capacity: an expert takes ceil(factor * B * k / E) rows; > 0
  bool all_phases = false;  // acts in prefill and mixed steps too (key phase: decode, all)
  // The layer's tables, in the backend's memory.
  const float* similarity = nullptr;  // sere: [E, E]
  const int32_t* alias = nullptr;     // alias: [E] 0..E-1
  const int32_t* replay = nullptr;    // replay: [T, k] 0..E-1, each once in a row, or -1
};

// Whether `s` may change the routing of a step.
constexpr bool acts(const Selection& s, Phase phase, int64_t rows) {
  return s.policy != Policy::kTopk && (s.all_phases || phase == Phase::kDecodeOnly) && rows >= (is_per_row(s.policy) ? 1 : 2);
}
// Experts that `budget` allows.
constexpr int budget_experts(const Selection& s, int num_experts) {
  const double m = s.budget < 1 ? s.budget * num_experts : s.budget;
  return m >= num_experts ? num_experts : m < 1 ? 1 : int(m);
}

// "key=value,key=value", what follows a policy's name. Throws kInvalidArgument for another form and for a key given twice.
struct PolicySetting {
  std::string_view key, value;
};
std::vector<PolicySetting> parse_settings(std::string_view text, const char* field);

// A policy's text, "name:key=value,...": "topk" (also "off", ""), "lynx:alpha=8,beta=4,theta=1", "oea:k0=2", "top1" (=
// top_j:j=1). `file` gets the value of the key of that name ("" = none given), of policies that read a table: sere, alias,
// replay. Throws kInvalidArgument naming the unknown policy or key and those that exist.
Selection parse_policy(const std::string& text, std::string* file = nullptr);
std::string to_string(const Selection& selection, const std::string& file = "");  // parse_policy's canonical form
// Throws kInvalidArgument naming the parameter that does not fit a model with E experts, k per token.
void check_selection(const Selection& selection, int num_experts, int top_k);

// What all layers of a model do: "POLICY" or "POLICY@LAYERS=POLICY@...", as in "lynx:alpha=4@0-1+7=topk@5=oea:k0=2". LAYERS are
// numbers and ranges of the model's layers (from 0), joined by "+".
struct SelectionPlan {
  struct Part {
    std::vector<std::pair<int, int>> layers;  // ranges with both ends; of the first part empty: all layers that no other names
    Selection selection;
    std::string file;
  };
  std::vector<Part> parts{Part{}};

  const Part& of_layer(int layer) const;  // of the last part that names it
};
SelectionPlan parse_selection(const std::string& text);  // throws as parse_policy()
std::string to_string(const SelectionPlan& plan);

// How router logits become gates, from which a row's experts are chosen and weighed.
enum class RouterKind : uint8_t {
  kSoftmax,      // gates are the softmax of the logits over all experts
  kSigmoid,      // gates are sigmoids of the logits
  kSparsemixer,  // Phi-MoE at inference: two choices, each weighed by its softmax probability among the experts near it
                 // (arXiv 2409.12136 section 2.1); k is 2, never normalised
};

// The model's own routing rule: seven kinds of routers (Mixtral, Qwen2-MoE, gpt-oss, DeepSeek-V2, DeepSeek-V3, Ernie and MiniMax,
// Phi-MoE) are choices of these. A row takes the k experts with the largest gate + bias, ties to the lower expert, within its
// best groups; their weights are the gates (without bias), divided by their sum where the rule normalises, times `scale`.
// Top-k before softmax (gpt-oss, Granite) is kSoftmax, normalised.
struct RouterRule {
  int num_experts = 0;    // E
  int top_k = 0;          // k
  bool norm_topk = true;  // divide the chosen gates by their sum
  RouterKind kind = RouterKind::kSoftmax;
  const float* bias = nullptr;  // [E] in the backend's memory; finite; null = none (e_score_correction_bias)
  int num_groups = 1;           // neighbouring experts in groups of E / num_groups; a row takes experts of its best groups alone
  int top_groups = 1;           // how many those are; top_groups * E / num_groups >= k (topk_group)
  bool group_top2 = false;      // a group's score is the sum of its two best gate + bias; false: the best alone
  float scale = 1;              // of all weights (routed_scaling_factor)
  float min_sum = 0;            // norm_topk: the least divisor
  float jitter = 0.01f;         // kSparsemixer (router_jitter_noise)
};
// Throws kInvalidArgument (field router) naming the member that does not fit the others.
void check_rule(const RouterRule& rule);
RouterKind parse_router_kind(const std::string& name);  // "softmax", "sigmoid", "sparsemixer"; throws kInvalidArgument
std::string to_string(RouterKind kind);

// What an expert does between its products.
enum class Activation : uint8_t {
  kSilu,           // silu(gate) * up (arXiv 2002.05202 eq. 6)
  kClampedSwiglu,  // g = min(gate, limit), u = clamp(up, -limit, limit): g * sigmoid(alpha * g) * (u + 1) (gpt-oss)
};
struct FfnRule {
  Activation activation = Activation::kSilu;
  float alpha = 1.702f, limit = 7;  // kClampedSwiglu
  bool scale_input = false;         // the weight of a pair multiplies the expert's input, not its output (Llama 4)
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
  double retained_mass = 0;    // sum over rows of (gate mass of the final choice / of the own choice), 1 at most
  bool acted = false;          // a policy changed or could have changed this call (phase, rows, policy)
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
