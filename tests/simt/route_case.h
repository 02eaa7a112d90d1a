// Runs route() on a case, computes the same by the CPU's Selector and dispatch_pairs(), and compares: ids, lists and counters exactly,
// weights to weight_tolerance(). For the tests of route().
#pragma once
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/route/route.h"
#include "check.h"
#include "device_array.h"
#include "routing/dispatch.h"
#include "routing/selection_text.h"
#include "routing/selector.h"

namespace route_case {

using namespace lynx_rt;

inline constexpr int32_t kUntouched = -77;

// One launch configuration with its buffers, which replays reuse.
struct Case {
  int max_rows, num_experts, top_k;
  Selection selection;
  bool norm_topk = true;
  Phase phase = Phase::kDecodeOnly;
  std::vector<float> scores;   // [T, E]
  std::vector<uint8_t> exact;  // [T] or empty

  std::vector<int32_t> groups{};  // [T] or empty
  std::vector<uint8_t> cost{};    // [E] or empty

  // Tables; empty where the policy reads none.
  std::vector<float> similarity{};  // [E, E]
  std::vector<int32_t> alias{};     // [E]
  std::vector<int32_t> replay{};    // [T, k]

  RouterRule router{};        // members for which there is none above
  std::vector<float> bias{};  // [E] or empty

  RouterRule rule(const float* bias_data) const {
    RouterRule r = router;
    r.num_experts = num_experts;
    r.top_k = top_k;
    r.norm_topk = norm_topk;
    r.bias = bias.empty() ? nullptr : bias_data;
    return r;
  }

  std::string text() const {
    return "T=" + std::to_string(max_rows) + " E=" + std::to_string(num_experts) + " k=" + std::to_string(top_k) + " " +
           to_string(selection) + " norm " + std::to_string(norm_topk) + " exact " + std::to_string(exact.size()) + " groups " +
           std::to_string(groups.size()) + " costs " + std::to_string(cost.size()) + " phase " + std::to_string(int(phase)) +
           " router " + std::to_string(int(router.kind)) + " bias " + std::to_string(bias.size()) + " groups " +
           std::to_string(router.num_groups) + " of them " + std::to_string(router.top_groups);
  }
};

struct Output {
  std::vector<int32_t> ids, active, offsets, sorted_of_pair, pair_of_sorted;
  std::vector<float> weights;
  int32_t num_active = kUntouched;
  std::vector<int32_t> tiles;  // expert, first, count; of tiles that were not written kUntouched
  int32_t num_tiles = kUntouched;
  std::vector<uint8_t> uses;  // [E]
  SelectionStats stats;
  int32_t first_bad = -1;

  explicit Output(const Case& c)
      : ids(c.max_rows * c.top_k, kUntouched),
        active(c.num_experts, kUntouched),
        offsets(c.num_experts + 1, kUntouched),
        sorted_of_pair(ids),
        pair_of_sorted(ids),
        weights(ids.size(), -1.0f),
        tiles(3 * cuda::max_tiles(int64_t(ids.size()), c.num_experts, cuda::tile_rows(c.max_rows)), kUntouched) {}
};

// The arrays of a case in device memory.
class Device {
 public:
  explicit Device(const Case& c)
      : untouched_(c),
        scores_(c.scores),
        exact_(c.exact),
        groups_(c.groups),
        cost_(c.cost),
        ids_(untouched_.ids),
        active_(untouched_.active),
        offsets_(untouched_.offsets),
        sorted_of_pair_(untouched_.sorted_of_pair),
        pair_of_sorted_(untouched_.pair_of_sorted),
        tiles_(untouched_.tiles),
        counts_(std::vector<int32_t>(3, kUntouched)),
        weights_(untouched_.weights),
        similarity_(c.similarity),
        alias_(c.alias),
        replay_(c.replay),
        bias_(c.bias),
        scratch_(std::vector<float>(2 * c.scores.size(), std::nanf(""))),
        uses_(std::vector<uint8_t>(size_t(c.num_experts), 0xff)),
        stats_(1) {}

  Output run(const Case& c, int num_rows, bool with_tiles = true) {
    if (with_tiles) tiles_.write(untouched_.tiles);
    scores_.write(c.scores);
    counts_.write({num_rows, kUntouched, kUntouched});
    cuda::RouteArgs args = {};
    args.scores = scores_.get();
    args.num_rows = counts_.get();
    args.exact = c.exact.empty() ? nullptr : exact_.get();
    args.groups = c.groups.empty() ? nullptr : groups_.get();
    args.cost = c.cost.empty() ? nullptr : cost_.get();
    args.ids = ids_.get();
    args.weights = weights_.get();
    args.active = active_.get();
    args.num_active = counts_.get() + 1;
    args.offsets = offsets_.get();
    args.sorted_of_pair = sorted_of_pair_.get();
    args.pair_of_sorted = pair_of_sorted_.get();
    args.stats = stats_.get();
    args.uses = uses_.get();
    if (with_tiles) args.tiles = reinterpret_cast<cuda::Tile*>(tiles_.get());
    if (with_tiles) args.num_tiles = counts_.get() + 2;
    args.max_rows = c.max_rows;
    args.rule = c.rule(bias_.get());
    args.scratch = scratch_.get();
    args.selection = c.selection;
    args.selection.similarity = similarity_.get();
    args.selection.alias = alias_.get();
    args.selection.replay = replay_.get();
    args.phase = c.phase;
    cuda::route(args, {});

    Output out = untouched_;
    out.ids = ids_.read();
    out.weights = weights_.read();
    out.active = active_.read();
    out.offsets = offsets_.read();
    out.sorted_of_pair = sorted_of_pair_.read();
    out.pair_of_sorted = pair_of_sorted_.read();
    out.tiles = tiles_.read();
    const std::vector<int32_t> counts = counts_.read();
    out.num_active = counts[1];
    out.num_tiles = counts[2];
    out.uses = uses_.read();
    const auto stats = stats_.read()[0];
    out.stats = stats;
    out.first_bad = stats.first_bad;
    return out;
  }

 private:
  Output untouched_;
  DeviceVector<float> scores_;
  DeviceVector<uint8_t> exact_;
  DeviceVector<int32_t> groups_;
  DeviceVector<uint8_t> cost_;
  DeviceVector<int32_t> ids_, active_, offsets_, sorted_of_pair_, pair_of_sorted_, tiles_, counts_;
  DeviceVector<float> weights_, similarity_;
  DeviceVector<int32_t> alias_, replay_;
  DeviceVector<float> bias_, scratch_;
  DeviceVector<uint8_t> uses_;
  DeviceVector<SelectionStats> stats_;
};
static_assert(sizeof(cuda::Tile) == 3 * sizeof(int32_t));

// Computes the output by the CPU's code; rows from num_rows on are as route.h says.
inline Output run_host(const Case& c, int num_rows, Selector& selector) {
  Output out(c);
  std::fill(out.ids.begin(), out.ids.end(), -1);
  std::fill(out.weights.begin(), out.weights.end(), 0.0f);
  const RouterRule rule = c.rule(c.bias.data());
  std::vector<int32_t> wanted(size_t(c.num_experts));
  Routing routing{out.ids.data(), out.weights.data(), out.active.data(), 0, wanted.data()};
  Selection selection = c.selection;
  selection.similarity = c.similarity.data();
  selection.alias = c.alias.data();
  selection.replay = c.replay.data();
  const uint8_t* exact = c.exact.empty() ? nullptr : c.exact.data();
  out.stats = selector.run(c.scores.data(), num_rows, rule, selection, c.phase, exact, routing,
                           c.groups.empty() ? nullptr : c.groups.data(), c.cost.empty() ? nullptr : c.cost.data());
  out.num_active = routing.num_active;
  out.uses.assign(size_t(c.num_experts), 0);
  for (int32_t i = 0; i < routing.num_wanted; ++i) out.uses[size_t(wanted[size_t(i)])] |= kWanted;
  for (int32_t i = 0; i < routing.num_active; ++i) out.uses[size_t(out.active[size_t(i)])] |= kRead;
  DispatchPlan plan{out.offsets.data(), out.sorted_of_pair.data(), out.pair_of_sorted.data()};
  dispatch_pairs(routing, c.max_rows, rule, plan);

  const int rows = cuda::tile_rows(c.max_rows);
  out.num_tiles = 0;
  for (int e = 0; e < c.num_experts; ++e)
    for (int first = out.offsets[e]; first < out.offsets[e + 1]; first += rows) {
      const int32_t tile[] = {e, first, std::min(rows, out.offsets[e + 1] - first)};
      std::copy_n(tile, 3, &out.tiles.at(3 * out.num_tiles++));
    }
  return out;
}

// The largest relative difference of a weight on a device and on the host. In units of u = 2^-23: exponentials differ by 1.5 ulp
// (device 1, host 1/2), and their sums and products are double, so a quotient of two sums is off by 3 u, and rounding it on both sides
// adds 1 u. In a row that a policy changed the sum of the own weights is off by as much, and the retained mass to the power of `damp`
// by 3 u; sere and alias add up to k own weights in float32.
inline double weight_tolerance(const Case& c, bool acted) {
  const double changed = std::max(4 + 3 * c.selection.damp, double(c.top_k - 1));
  return std::ldexp(4 + (acted ? changed : 0), -23);
}

// The absolute tolerance for exponentials below the normal range, which are off by 1.5 times the smallest number: scale times that,
// and a rounding.
inline double smallest_tolerance(const Case& c) { return std::ldexp(2.0 * std::max(1.0f, c.router.scale) + 1, -149); }

inline int different_weights(const Case& c, bool acted, const std::vector<float>& got, const std::vector<float>& want) {
  int different = got.size() != want.size();
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    const double most = weight_tolerance(c, acted) * std::abs(double(want[i])) + smallest_tolerance(c);
    different += !(std::abs(double(got[i]) - want[i]) <= most);
  }
  return different;
}

// The counters of one policy, since the start.
struct Coverage {
  int acted = 0, changed = 0, guard_hits = 0;
};
inline Coverage coverage[kNumPolicies];

inline Output compare(const Case& c, int num_rows, Device& device, Selector& selector) {
  const int failures_before = check::failures;
  Output got = device.run(c, num_rows);
  // Neither writes after the ends of the lists, where the device's buffers may still have an earlier result.
  Output want = run_host(c, num_rows, selector);
  const int32_t num_pairs = want.offsets.back();
  std::copy(got.active.begin() + want.num_active, got.active.end(), want.active.begin() + want.num_active);
  std::copy(got.pair_of_sorted.begin() + num_pairs, got.pair_of_sorted.end(), want.pair_of_sorted.begin() + num_pairs);

  CHECK(got.ids == want.ids);
  CHECK_EQ(different_weights(c, want.stats.acted && !want.stats.guard_hit, got.weights, want.weights), 0);
  CHECK_EQ(got.num_active, want.num_active);
  CHECK(got.active == want.active);
  CHECK(got.offsets == want.offsets);
  CHECK(got.sorted_of_pair == want.sorted_of_pair);
  CHECK(got.pair_of_sorted == want.pair_of_sorted);
  CHECK_EQ(got.num_tiles, want.num_tiles);
  CHECK(got.tiles == want.tiles);
  CHECK(got.uses == want.uses);
  const SelectionStats &g = got.stats, &w = want.stats;
  CHECK_EQ(g.rows, w.rows);
  CHECK_EQ(g.union_before, w.union_before);
  CHECK_EQ(g.active, w.active);
  CHECK_EQ(g.remapped_pairs, w.remapped_pairs);
  CHECK_EQ(g.changed_rows, w.changed_rows);
  CHECK_EQ(g.misses_before, w.misses_before);
  CHECK_EQ(g.misses, w.misses);
  CHECK(std::abs(g.retained_mass - w.retained_mass) <= (w.acted && !w.guard_hit ? 1e-6 * w.retained_mass + 1e-9 : 0));
  CHECK_EQ(g.acted, w.acted);
  CHECK_EQ(g.guard_hit, w.guard_hit);
  CHECK_EQ(got.first_bad, -1);
  Coverage& covered = coverage[int(c.selection.policy)];
  covered.acted += w.acted;
  covered.changed += w.remapped_pairs > 0;
  covered.guard_hits += w.guard_hit;
  if (check::failures != failures_before) std::cerr << "  in " << c.text() << ", rows " << num_rows << "\n";
  return got;
}

// Gives the rows a few isolation groups; those of padding rows are poison.
inline void draw_groups(Case& c, int num_rows, std::mt19937& random) {
  c.groups.assign(size_t(c.max_rows), 30000);
  int32_t num_groups = 0;
  const unsigned most = 1 + random() % 6;
  for (int t = 0; t < num_rows; ++t)
    num_groups =
        std::max(num_groups, 1 + (c.groups[size_t(t)] = int32_t(random() % std::min<unsigned>(unsigned(num_groups) + 1, most))));
}

// Returns scores of one of five kinds: continuous; quarters (ties, and gaps on the edges of bins); all equal; extreme values and zeros
// of either sign; one expert above all.
inline std::vector<float> make_scores(int kind, size_t count, int num_experts, std::mt19937& random) {
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> scores(count);
  const size_t favourite = random() % unsigned(num_experts);
  for (size_t i = 0; i < count; ++i) {
    float& z = scores[i];
    z = normal(random);
    if (kind == 4 && i % num_experts == favourite) z = 30;
    if (kind == 1) z = std::round(z * 4) / 4;
    if (kind == 2) z = 0.5f;
    if (kind == 3) {
      const float choices[] = {-0.0f, 0.0f, 3e38f, -3e38f, 1e-40f, 200.0f, z};
      z = choices[random() % 7];
    }
  }
  return scores;
}

}  // namespace route_case
