// route() against the CPU's Selector and dispatch_pairs(): ids, lists and counters exactly, weights to 1e-6.
//   test_route [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include "backend/cuda/route.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/dispatch.h"
#include "backend/cpu/select.h"
#include "check.h"
#include "device_array.h"

using namespace lynx_rt;

namespace {

constexpr int32_t kUntouched = -77;

// One launch configuration with its buffers, which replays reuse.
struct Case {
  int max_rows, num_experts, top_k;
  Selection selection;
  bool norm_topk = true;
  Phase phase = Phase::kDecodeOnly;
  std::vector<float> scores;   // [T, E]
  std::vector<uint8_t> exact;  // [T] or empty

  std::string text() const {
    return "T=" + std::to_string(max_rows) + " E=" + std::to_string(num_experts) + " k=" + std::to_string(top_k) + " policy " +
           std::to_string(int(selection.policy)) + " alpha " + std::to_string(selection.alpha) + " beta " +
           std::to_string(selection.beta) + " theta " + std::to_string(selection.theta) + " k0 " + std::to_string(selection.k0) +
           " norm " + std::to_string(norm_topk) + " exact " + std::to_string(exact.size()) + " phase " +
           std::to_string(int(phase));
  }
};

struct Output {
  std::vector<int32_t> ids, active, offsets, row_of_pair, pair_of_row;
  std::vector<float> weights;
  int32_t num_active = kUntouched;
  std::vector<int32_t> tiles;  // expert, first, count; of tiles that were not written kUntouched
  int32_t num_tiles = kUntouched;
  SelectionStats stats;
  int32_t first_bad = -1;

  explicit Output(const Case& c)
      : ids(c.max_rows * c.top_k, kUntouched),
        active(c.num_experts, kUntouched),
        offsets(c.num_experts + 1, kUntouched),
        row_of_pair(ids),
        pair_of_row(ids),
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
        ids_(untouched_.ids),
        active_(untouched_.active),
        offsets_(untouched_.offsets),
        row_of_pair_(untouched_.row_of_pair),
        pair_of_row_(untouched_.pair_of_row),
        tiles_(untouched_.tiles),
        counts_(std::vector<int32_t>(3, kUntouched)),
        weights_(untouched_.weights),
        stats_(1) {}

  Output run(const Case& c, int num_rows, bool with_tiles = true) {
    if (with_tiles) tiles_.write(untouched_.tiles);
    scores_.write(c.scores);
    counts_.write({num_rows, kUntouched, kUntouched});
    cuda::RouteArgs args = {};
    args.scores = scores_.get();
    args.num_rows = counts_.get();
    args.exact = c.exact.empty() ? nullptr : exact_.get();
    args.ids = ids_.get();
    args.weights = weights_.get();
    args.active = active_.get();
    args.num_active = counts_.get() + 1;
    args.offsets = offsets_.get();
    args.row_of_pair = row_of_pair_.get();
    args.pair_of_row = pair_of_row_.get();
    args.stats = stats_.get();
    if (with_tiles) args.tiles = reinterpret_cast<cuda::Tile*>(tiles_.get());
    if (with_tiles) args.num_tiles = counts_.get() + 2;
    args.max_rows = c.max_rows;
    args.rule = {c.num_experts, c.top_k, c.norm_topk};
    args.selection = c.selection;
    args.phase = c.phase;
    cuda::route(args, {});

    Output out = untouched_;
    out.ids = ids_.read();
    out.weights = weights_.read();
    out.active = active_.read();
    out.offsets = offsets_.read();
    out.row_of_pair = row_of_pair_.read();
    out.pair_of_row = pair_of_row_.read();
    out.tiles = tiles_.read();
    const std::vector<int32_t> counts = counts_.read();
    out.num_active = counts[1];
    out.num_tiles = counts[2];
    const auto stats = stats_.read()[0];
    out.stats = stats;
    out.first_bad = stats.first_bad;
    return out;
  }

 private:
  Output untouched_;
  DeviceVector<float> scores_;
  DeviceVector<uint8_t> exact_;
  DeviceVector<int32_t> ids_, active_, offsets_, row_of_pair_, pair_of_row_, tiles_, counts_;
  DeviceVector<float> weights_;
  DeviceVector<SelectionStats> stats_;
};
static_assert(sizeof(cuda::Tile) == 3 * sizeof(int32_t));

// The same from the CPU's code; rows beyond num_rows as route.h says.
Output run_host(const Case& c, int num_rows, Selector& selector) {
  Output out(c);
  std::fill(out.ids.begin(), out.ids.end(), -1);
  std::fill(out.weights.begin(), out.weights.end(), 0.0f);
  const RouterRule rule{c.num_experts, c.top_k, c.norm_topk};
  Routing routing{out.ids.data(), out.weights.data(), out.active.data(), 0};
  out.stats =
      selector.run(c.scores.data(), num_rows, rule, c.selection, c.phase, c.exact.empty() ? nullptr : c.exact.data(), routing);
  out.num_active = routing.num_active;
  DispatchPlan plan{out.offsets.data(), out.row_of_pair.data(), out.pair_of_row.data()};
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

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(double(a[i]) - b[i]);
    if (!(difference <= most)) most = difference;  // NaN stays
  }
  return most;
}

struct Coverage {
  int acted = 0, changed = 0, guard_hits = 0;
} coverage;

Output compare(const Case& c, int num_rows, Device& device, Selector& selector) {
  const int failures_before = check::failures;
  Output got = device.run(c, num_rows);
  // Both leave what lies behind the ends of the lists alone; the device's buffers may hold an earlier result there.
  Output want = run_host(c, num_rows, selector);
  const int32_t num_pairs = want.offsets.back();
  std::copy(got.active.begin() + want.num_active, got.active.end(), want.active.begin() + want.num_active);
  std::copy(got.pair_of_row.begin() + num_pairs, got.pair_of_row.end(), want.pair_of_row.begin() + num_pairs);

  CHECK(got.ids == want.ids);
  CHECK(largest_difference(got.weights, want.weights) <= 1e-6);
  CHECK_EQ(got.num_active, want.num_active);
  CHECK(got.active == want.active);
  CHECK(got.offsets == want.offsets);
  CHECK(got.row_of_pair == want.row_of_pair);
  CHECK(got.pair_of_row == want.pair_of_row);
  CHECK_EQ(got.num_tiles, want.num_tiles);
  CHECK(got.tiles == want.tiles);
  const SelectionStats &g = got.stats, &w = want.stats;
  CHECK_EQ(g.rows, w.rows);
  CHECK_EQ(g.union_before, w.union_before);
  CHECK_EQ(g.active, w.active);
  CHECK_EQ(g.remapped_pairs, w.remapped_pairs);
  CHECK(std::abs(g.retained_mass - w.retained_mass) <= (w.remapped_pairs ? 1e-6 * w.retained_mass + 1e-9 : 0));
  CHECK_EQ(g.acted, w.acted);
  CHECK_EQ(g.guard_hit, w.guard_hit);
  CHECK_EQ(got.first_bad, -1);
  coverage.acted += w.acted;
  coverage.changed += w.remapped_pairs > 0;
  coverage.guard_hits += w.guard_hit;
  if (check::failures != failures_before) std::cerr << "  in " << c.text() << ", rows " << num_rows << "\n";
  return got;
}

// Scores of five kinds: continuous; quarters (ties, and gaps on the edges of bins); all alike; extreme and zeros of either sign;
// one expert above all.
std::vector<float> make_scores(int kind, size_t count, int num_experts, std::mt19937& random) {
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

Case make_case(int max_rows, int num_experts, int variant, std::mt19937& random) {
  Case c{max_rows, num_experts, 1 + int(random() % unsigned(std::min(8, num_experts))), {}, true, Phase::kDecodeOnly, {}, {}};
  c.selection.policy = variant == 0 ? Policy::kTopk : variant % 2 ? Policy::kLynx : Policy::kOea;
  const double alphas[] = {8, 1, 1.1, 0.25, 1e-35};
  const double thetas[] = {1, 0.3, 2, 2.5, 100, 0, 1e300};
  c.selection.alpha = alphas[random() % 5];
  c.selection.beta = 1 + int(random() % 16);
  c.selection.theta = thetas[random() % 7];
  c.selection.k0 = 1 + int(random() % c.top_k);
  if (variant <= 2) c.selection = {c.selection.policy, 8, 4, 1, 1};  // the defaults
  c.norm_topk = random() % 2;
  if (random() % 8 == 0) c.phase = random() % 2 ? Phase::kPrefill : Phase::kMixed;
  if (random() % 3 == 0) {
    c.exact.resize(max_rows);
    const unsigned every = 1 + random() % 4;
    for (uint8_t& flag : c.exact) flag = random() % every == 0;
  }
  const int kinds[] = {0, 0, 0, 1, 1, 2, 3, 4};
  c.scores = make_scores(kinds[random() % 8], size_t(max_rows) * num_experts, num_experts, random);
  return c;
}

void test_cases(int every) {
  std::mt19937 random(20);
  Selector selector;
  int number = 0;
  for (const int num_experts : {1, 8, 31, 32, 64, 128, 512})
    for (const int max_rows : {0, 1, 2, 5, 16, 33, 64, 256})
      for (int variant = 0; variant < 7; ++variant) {
        const Case c = make_case(max_rows, num_experts, variant, random);
        if (number++ % every) continue;
        Device device(c);
        compare(c, max_rows, device, selector);
        // The same launch again with another count: a captured graph's replay.
        if (max_rows <= 33) compare(c, int(random() % unsigned(max_rows + 1)), device, selector);
      }
}

// Many small cases; what the scores of rows are that only pad is nobody's business.
void test_random_cases(int every) {
  std::mt19937 random(24);
  Selector selector;
  for (int number = 0; number < 10000; ++number) {
    const int max_rows = int(random() % (random() % 8 ? 10 : 41)), num_experts = 1 + int(random() % (random() % 2 ? 24 : 160));
    Case c = make_case(max_rows, num_experts, int(random() % 9), random);
    const int num_rows = random() % 2 ? max_rows : int(random() % unsigned(max_rows + 1));
    std::fill(c.scores.begin() + num_rows * num_experts, c.scores.end(), std::nanf(""));
    if (number % every) continue;
    Device device(c);
    compare(c, num_rows, device, selector);
  }
}

// More rows than one block takes: no policy acts, whatever it is. The last case counts beyond 16 bits.
void test_many_rows(int every) {
  struct Size {
    int max_rows, num_rows, num_experts, top_k, kind;
    Phase phase;
  };
  std::mt19937 random(25);
  Selector selector;
  int number = 0;
  for (const Size& size : {Size{257, 257, 512, 1, 0, Phase::kDecodeOnly}, Size{300, 290, 33, 8, 1, Phase::kPrefill},
                           Size{257, 0, 5, 5, 2, Phase::kMixed}, Size{511, 511, 300, 2, 4, Phase::kMixed},
                           Size{1000, 999, 128, 8, 0, Phase::kPrefill}, Size{700, 700, 100, 16, 3, Phase::kPrefill},
                           Size{2100, 2100, 1, 1, 0, Phase::kMixed}, Size{65536, 65536, 2, 1, 4, Phase::kPrefill}}) {
    if (every > 1 && number++ >= (every > 8 ? 2 : 4)) continue;
    Case c = make_case(size.max_rows, size.num_experts, 1, random);
    c.top_k = size.top_k;
    c.phase = size.phase;
    if (c.phase == Phase::kDecodeOnly) c.selection = {};
    c.scores = make_scores(size.kind, c.scores.size(), c.num_experts, random);
    std::fill(c.scores.begin() + size.num_rows * c.num_experts, c.scores.end(), std::nanf(""));
    Device device(c);
    const std::vector<float> got = compare(c, size.num_rows, device, selector).weights;

    // A row's weights have the same bits in a small step.
    Case few = c;
    few.max_rows = std::min(20, size.num_rows);
    few.phase = Phase::kPrefill;
    few.scores.resize(few.max_rows * c.num_experts);
    few.exact.resize(c.exact.empty() ? 0 : few.max_rows);
    Device small(few);
    const std::vector<float> want = small.run(few, few.max_rows).weights;
    CHECK(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0);
  }
}

// Run whatever every n-th case is: most choices, many fills, several steps of a warp's pairs.
void test_most_choices() {
  std::mt19937 random(21);
  Selector selector;
  for (const int variant : {0, 1, 2, 3}) {
    const int max_rows = variant == 3 ? 200 : 20;
    Case c = make_case(max_rows, 60, variant, random);
    c.top_k = 16;
    c.phase = Phase::kDecodeOnly;
    c.exact.clear();
    c.scores = make_scores(0, c.scores.size(), 60, random);
    if (variant == 3) c.selection = {Policy::kLynx, 0.25, 1, 1e300, 1};  // nobody is confident, nothing is admitted by votes
    Device device(c);
    compare(c, max_rows, device, selector);
    compare(c, 2, device, selector);
  }
}

// A score that is not finite is reported; the lists stay in range.
void test_bad_scores() {
  std::mt19937 random(22);
  const float all_ones = std::bit_cast<float>(0xffffffffu);
  for (const float bad : {std::nanf(""), -std::nanf(""), all_ones, std::numeric_limits<float>::infinity()})
    for (const int max_rows : {5, 270}) {
      if (max_rows > cuda::kMaxRouteRows && std::bit_cast<uint32_t>(bad) != 0xffffffffu) continue;
      Case c = make_case(max_rows, 40, 1, random);
      c.phase = Phase::kMixed;
      c.scores = make_scores(0, c.scores.size(), 40, random);
      const int first = max_rows / 2;  // not in the first block
      std::fill(c.scores.begin() + (first + 1) * 40, c.scores.end(), bad);
      c.scores[first * 40 + 7] = bad;
      Device device(c);
      const Output out = device.run(c, max_rows);
      CHECK_EQ(out.first_bad, first * 40 + 7);
      for (const int32_t id : out.ids) CHECK(id >= 0 && id < 40);
      for (const int32_t row : out.row_of_pair) CHECK(row >= 0 && row < max_rows * c.top_k);
      CHECK_EQ(device.run(c, first).first_bad, -1);  // in rows that only pad, it is nobody's business
    }
}

// Nobody wants tiles: nothing is written, and the rest is as ever.
void test_without_tiles() {
  std::mt19937 random(26);
  for (const int max_rows : {9, 260}) {
    Case c = make_case(max_rows, 20, 2, random);
    c.phase = Phase::kMixed;
    Device device(c);
    const Output without = device.run(c, max_rows, false), with = device.run(c, max_rows);
    CHECK_EQ(without.num_tiles, kUntouched);
    for (const int32_t v : without.tiles) CHECK_EQ(v, kUntouched);
    CHECK(without.ids == with.ids && without.row_of_pair == with.row_of_pair && without.pair_of_row == with.pair_of_row);
  }
}

void test_arguments() {
  std::mt19937 random(23);
  const Case good = make_case(4, 8, 2, random);
  const auto call = [&](auto change) {
    Device device(good);
    Case c = good;
    change(c);
    device.run(c, 0);
  };
  const auto invalid = ErrorCode::kInvalidArgument;
  CHECK_THROWS(call([](Case& c) { c.max_rows = 65537; }), invalid, "route", {"rows", "0..65536", "65537"});
  CHECK_THROWS(call([](Case& c) { c.max_rows = 257, c.phase = Phase::kDecodeOnly; }), invalid, "route",
               {"rows", "policy", "0..256", "257"});
  CHECK_THROWS(call([](Case& c) { c.num_experts = 513; }), invalid, "route", {"experts", "1..512", "513"});
  CHECK_THROWS(call([](Case& c) { c.top_k = 9; }), invalid, "route", {"1..8", "got 9"});
  CHECK_THROWS(call([](Case& c) { c.selection.k0 = 9; }), invalid, "selection", {"k0", "got 9"});
  CHECK_THROWS(call([](Case& c) { c.selection = {Policy::kLynx, 8, 17, 1, 1}; }), invalid, "selection", {"beta", "got 17"});
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  test_cases(every);
  test_random_cases(every);
  test_many_rows(every);
  test_most_choices();
  test_bad_scores();
  test_without_tiles();
  test_arguments();
  if (every == 1) {
    CHECK(coverage.acted > 3000);
    CHECK(coverage.changed > 1000);
    CHECK(coverage.guard_hits > 300);
  }
  return check::result("test_route");
}
