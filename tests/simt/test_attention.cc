// plan_attention() and attention() against float64, and the order guarantee bit by bit.
//   test_attention [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
//
// Keys that no row sees are NaN in every run, pages are shuffled, and table entries after the sequence are garbage:
// attention_model.h.
#include "backend/cuda/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "attention_model.h"
#include "backend/cuda/gemm/packed.h"
#include "check.h"
#include "device_array.h"

using namespace lynx_rt;

namespace {

float rounded_to_bf16(float v) { return bf16_to_f32(f32_to_bf16(v)); }

// --- attention

enum Wanted { kBoth, kOut, kRounded };

// Returns the results of a step, [T, A * Dv]; checks that nothing around and after them was written. `room`: tiles and partials that
// the launch has beyond the step's, as a captured graph may.
std::vector<float> run(const Model& m, const Step& step, Wanted wanted = kBoth, int room = 0) {
  const int rows = step.num_rows(), columns = m.columns(), padded = int(cuda::padded_columns(columns));
  std::vector<cuda::AttentionTile> tiles = step.plan.tiles;
  tiles.resize(tiles.size() + room, {-1000, 0, -1000, -1000, -1000});
  const DeviceVector<float> q(step.q),
      partial(std::vector<float>(size_t(step.num_partials()) * m.num_heads * (m.v_dim() + 2) + 1, kNaN));
  const DeviceVector<float> out(std::vector<float>(size_t(rows + 1) * columns, -7)), sinks(m.sinks);
  const DeviceVector<uint16_t> k(step.k), v(step.v), rounded(std::vector<uint16_t>(size_t(rows + 1) * padded, 0x7777));
  const DeviceVector<int32_t> positions(step.positions), tables(step.tables), first_partial(step.plan.first_partial),
      query_start(step.query_start);
  const DeviceVector<cuda::AttentionTile> device_tiles(tiles);
  cuda::PagedAttentionArgs a = {};
  a.q = q.get(), a.q_stride = step.q_stride, a.num_rows = rows, a.num_heads = m.num_heads, a.scale = m.scale();
  a.window = m.view.window, a.chunk = m.view.chunk, a.sinks = m.view.sinks ? sinks.get() : nullptr;
  a.query_start = m.view.full ? query_start.get() : nullptr;
  a.positions = positions.get(), a.block_tables = tables.get(), a.max_blocks = step.max_blocks;
  a.cache = {
      k.get(),     m.view.latent ? nullptr : v.get(), DType::kBF16, step.num_blocks, m.block_size, m.num_kv_heads, m.head_dim,
      m.view.v_dim};
  a.tiles = device_tiles.get(), a.num_tiles = int(tiles.size());
  a.first_partial = first_partial.get(), a.num_partials = step.num_partials() + room, a.partial = partial.get();
  a.out = wanted == kRounded ? nullptr : out.get(), a.rounded = wanted == kOut ? nullptr : rounded.get();
  cuda::attention(a, {});

  std::vector<float> result = out.read();
  const std::vector<uint16_t> bf16 = rounded.read();
  CHECK(std::all_of(result.end() - columns, result.end(), [](float x) { return x == -7; }));
  CHECK(std::all_of(bf16.end() - padded, bf16.end(), [](uint16_t x) { return x == 0x7777; }));
  CHECK(std::isnan(partial.read().back()));
  result.resize(size_t(rows) * columns);
  int wrong = 0;
  for (int t = 0; t < rows; ++t)
    for (int c = 0; c < padded; ++c) {
      const uint16_t got = bf16[size_t(t) * padded + c];
      if (wanted == kRounded && c < columns) result[size_t(t) * columns + c] = bf16_to_f32(got);
      if (wanted != kOut) wrong += got != (c < columns ? f32_to_bf16(result[size_t(t) * columns + c]) : 0);
    }
  CHECK_EQ(wrong, 0);
  return result;
}

// Returns the largest |got - reference| / bound of a row, infinite for NaN. With w the weights of the row and |w v| = sum w |v|,
// a relative error of at most e of each weight moves the result by at most e (|w v| + |result|), as the weights sum to 1. e is
//   2^-8                 a numerator is rounded to bf16
// A sink is one more weight, of no score and no value.
//   ds                   score: scale * (D + 1) roundings of the product, which a GPU may truncate: 2^-23 each; and times the
//   scale 3 (2^-22 + 2^-23 r)  exp() of the numerator and of both merges, and its argument; r the range of the scores
// Sums: at most 64 keys and 2 roundings for each of 4 units and of the splits, in numerator and denominator; and the division.
// n: the keys that the row sees end here.
double worst_row(const Model& m, int sequence, int position, int n, const float* got) {
  const int d = m.head_dim, dv = m.v_dim(), row = m.num_kv_heads * d, begin = m.first_key(position);
  const double u = std::ldexp(1, -23);
  double worst = 0;
  std::vector<double> weight(n);
  for (int a = 0; a < m.num_heads; ++a) {
    const int g = a / m.group();
    double ds = 0, most = -INFINITY, least = INFINITY, sum = 0;
    if (m.view.sinks) most = least = m.sinks[a];
    for (int key = begin; key < n; ++key) {
      double dot = 0, size = 0;
      for (int c = 0; c < d; ++c) {
        const double product = double(rounded_to_bf16(m.q[sequence][size_t(position) * m.q_columns() + a * d + c])) *
                               bf16_to_f32(m.k[sequence][size_t(key) * row + g * d + c]);
        dot += product, size += std::abs(product);
      }
      weight[key] = dot * m.scale();
      ds = std::max(ds, (d + 2) * u * size * m.scale());
      most = std::max(most, weight[key]), least = std::min(least, weight[key]);
    }
    for (int key = begin; key < n; ++key) sum += weight[key] = std::exp(weight[key] - most);
    if (m.view.sinks) sum += std::exp(m.sinks[a] - most);
    const double e = std::ldexp(1, -8) + ds + 3 * (2 * u + u * (most - least));
    for (int c = 0; c < dv; ++c) {
      double want = 0, size = 0;
      for (int key = begin; key < n; ++key) {
        const double product = weight[key] / sum * bf16_to_f32(m.v[sequence][(size_t(key) * m.num_kv_heads + g) * dv + c]);
        want += product, size += std::abs(product);
      }
      const float value = got[a * dv + c];
      const double bound = (e + 2 * u * (64 + 2 * (4 + ceil_div(n, cuda::kSplitKeys)))) * (size + std::abs(want)) + 1e-30;
      // In the other kinds only the division rounds.
      const double error = m.kind == kRandom ? std::abs(value - want) / bound : value == float(want) ? 0 : 2;
      worst = std::max(worst, std::isnan(error) ? INFINITY : error);
    }
  }
  return worst;
}

void check_rows(const Model& m, const std::vector<Piece>& pieces, const std::vector<float>& got) {
  const float* row = got.data();
  for (const Piece& p : pieces)
    for (int i = 0; i < p.rows; ++i, row += m.columns()) {
      if (p.sequence < 0) {
        CHECK(std::all_of(row, row + m.columns(), [](float x) { return x == 0; }));
        continue;
      }
      const double worst = worst_row(m, p.sequence, p.first + i, p.first + (m.view.full ? p.rows : i + 1), row);
      CHECK(worst <= 1);
      if (!(worst <= 1)) std::cerr << "  " << worst << " of the bound: " << m.text() << ", position " << p.first + i << "\n";
    }
}

// One step has decode rows of all lengths, padding rows, and some chunks of prompts.
void test_against_reference(int every) {
  struct Shape {
    int heads, kv_heads, head_dim, block_size;
  };
  const Shape shapes[] = {{1, 1, 16, 16}, {2, 1, 64, 1},   {3, 1, 64, 3},   {4, 1, 128, 16}, {8, 1, 80, 64}, {1, 1, 256, 16},
                          {16, 1, 16, 3}, {20, 1, 32, 16}, {2, 2, 2, 3},    {16, 2, 24, 16}, {2, 2, 40, 1},  {2, 2, 70, 64},
                          {1, 1, 192, 3}, {40, 2, 18, 16}, {33, 1, 16, 64}, {3, 1, 250, 5}};
  int number = 0;
  for (const Shape& s : shapes)
    for (int kind = 0; kind < kNumKinds; ++kind) {
      if (kind == 1 + number / kNumKinds % 2 || number % every) {  // one of the two exact kinds is enough
        ++number;
        continue;
      }
      ++number;
      const Model m = make_model(s.heads, s.kv_heads, s.head_dim, s.block_size, Kind(kind),
                                 {1, 15, 63, 64, 65, 255, 256, 257, 700}, unsigned(number));
      std::vector<Piece> pieces = {{-1, 0, 1}};
      // Takes one of three sets of sequences, so that every shape and kind has long and short ones.
      for (int i = (number / 3 + kind) % 3; i < 9; i += 3) pieces.push_back({i, m.lengths[i] - 1, 1});
      pieces.push_back({8, 254 + number % 2, 2 + 8 / m.group()});
      pieces.push_back({3, 61, m.group() > 8 ? 2 : 3});
      pieces.push_back({1, 0, m.group() > 4 ? 3 : 15});
      if (number % 2) pieces.push_back({8, 699, 1});
      pieces.push_back({-1, 0, 1});
      const Step step(m, pieces, unsigned(number));
      check_rows(m, pieces, run(m, step, kBoth, number % 4));
    }
}

// Tests windows and chunks around the sizes of units and splits, sinks, V of other sizes, and V in K, up to the largest sizes.
void test_views(int every) {
  struct Shape {
    int heads, kv_heads, head_dim, block_size;
    View view;
  };
  const Shape shapes[] = {{4, 2, 16, 16, {0, false, 1, 0, false}},      {8, 1, 64, 3, {0, false, 5, 0, true}},
                          {2, 1, 32, 16, {0, false, 64, 0, false}},     {4, 1, 80, 64, {0, false, 65, 0, true}},
                          {3, 3, 18, 5, {0, false, 256, 0, false}},     {16, 2, 64, 16, {0, false, 300, 0, true}},
                          {4, 2, 128, 16, {0, false, 100000, 0, true}}, {4, 4, 16, 16, {0, false, 0, 1, false}},
                          {2, 1, 64, 7, {0, false, 0, 64, false}},      {20, 1, 32, 16, {0, false, 0, 100, true}},
                          {4, 1, 16, 16, {0, false, 30, 50, false}},    {2, 1, 40, 3, {24, false, 0, 0, false}},
                          {4, 2, 16, 16, {72, false, 0, 0, true}},      {16, 1, 24, 16, {16, true, 0, 0, false}},
                          {4, 1, 80, 16, {64, true, 0, 0, true}},       {3, 1, 22, 5, {18, true, 70, 0, false}},
                          {2, 1, 150, 16, {130, true, 0, 0, false}},    {20, 1, 576, 16, {512, true, 0, 0, false}},
                          {2, 1, 330, 16, {298, true, 0, 300, false}},  {1, 1, 512, 16, {0, false, 0, 0, false}},
                          {5, 1, 570, 3, {506, true, 0, 0, false}}};
  int number = 0;
  for (const Shape& s : shapes)
    for (const Kind kind : {kRandom, kUniform}) {
      if (kind == kUniform && (s.view.sinks || number % 3)) continue;
      if (number++ % every) continue;
      const Model m =
          make_model(s.heads, s.kv_heads, s.head_dim, s.block_size, kind, {1, 63, 257, 320, 600}, unsigned(number), s.view);
      std::vector<Piece> pieces = {{-1, 0, 1}, {number % 3, m.lengths[number % 3] - 1, 1}, {3, 319, 1}};
      if (number % 2) pieces.push_back({4, 599, 1});
      pieces.push_back({4, 251 + 64 * (number % 3), 9});
      pieces.push_back({1, 0, 7});
      const Step step(m, pieces, unsigned(number));
      const std::vector<float> got = run(m, step, kBoth, number % 4);
      check_rows(m, pieces, got);
      // A step of single rows: only the splits that a window may see are launched.
      const std::vector<Piece> decode = {{4, 599, 1}, {3, 319, 1}, {2, 256, 1}};
      check_rows(m, decode, run(m, Step(m, decode, 3)));
      // A row has the same bits by splits and in a tile of its own.
      const size_t columns = size_t(m.columns()), row = step.positions.size() - 7 - 5;
      const std::vector<float> alone = run(m, Step(m, {{4, 251 + 64 * (number % 3) + 4, 1}}, 9));
      CHECK(std::memcmp(&got[row * columns], alone.data(), columns * sizeof(float)) == 0);
    }
}

// Tests rows without a causal mask, whose keys end with their sequence's last row: sequences around units and splits, and of one row.
void test_full(int every) {
  struct Shape {
    int heads, kv_heads, head_dim, block_size;
  };
  const Shape shapes[] = {{2, 2, 72, 16}, {1, 1, 10, 3}, {4, 2, 20, 16}, {3, 1, 64, 16}};
  int number = 0;
  for (const Shape& s : shapes)
    for (const Kind kind : {kRandom, kUniform, kOneKey}) {
      if (number++ % every) continue;
      View view;
      view.full = true;
      view.sinks = kind == kRandom && number % 2 == 0;
      const Model m =
          make_model(s.heads, s.kv_heads, s.head_dim, s.block_size, kind, {1, 17, 64, 65, 300}, unsigned(number), view);
      const std::vector<Piece> pieces = {{4, 0, 300}, {-1, 0, 1}, {0, 0, 1}, {2, 0, 64}, {1, 0, 17}, {3, 0, 65}};
      const std::vector<float> got = run(m, Step(m, pieces, unsigned(number)), kBoth, 2);
      check_rows(m, pieces, got);
      const std::vector<float> alone = run(m, Step(m, {{3, 0, 65}}, 9));
      CHECK(std::memcmp(&got[got.size() - alone.size()], alone.data(), alone.size() * sizeof(float)) == 0);
    }
  cuda::PagedAttentionArgs a = {};
  const int32_t starts[] = {0, 0};
  a.num_heads = 4, a.cache = {nullptr, nullptr, DType::kBF16, 1, 16, 2, 64}, a.window = 3, a.query_start = starts;
  CHECK_THROWS(cuda::attention(a, {}), ErrorCode::kUnsupported, "attention", {"causal", "3"});
}

bool same_bits(const std::vector<float>& all, size_t row, const std::vector<float>& one, size_t columns) {
  return std::memcmp(&all[row * columns], one.data(), columns * sizeof(float)) == 0;
}

// Rows around the ends of units and splits have the same bits alone, among others, and in chunks of several sizes.
void test_order(int every) {
  struct Shape {
    int heads, kv_heads, head_dim, block_size, length;
  };
  const Shape shapes[] = {{2, 1, 64, 16, 519}, {5, 1, 72, 3, 262}, {16, 1, 16, 64, 262}, {20, 1, 40, 7, 262}, {4, 2, 18, 1, 262}};
  int number = 0;
  for (const Shape& s : shapes) {
    if (number++ % every) continue;
    const Model m = make_model(s.heads, s.kv_heads, s.head_dim, s.block_size, kRandom, {s.length, 60}, unsigned(number));
    const size_t columns = size_t(m.columns());
    for (const int begin : {0, 60, s.length - 10}) {
      const int count = 8;
      const std::vector<float> whole = run(m, Step(m, {{0, begin, count}}, 1));
      check_rows(m, {{0, begin, count}}, whole);
      for (int i = 0; i < count; i += 3) {
        CHECK(same_bits(whole, size_t(i), run(m, Step(m, {{0, begin + i, 1}}, 2)), columns));
      }
      for (const int first : {3, 5})  // chunks of 3 and 5 rows, either way round
        for (int i = 0; i < count; i = i == 0 ? first : count) {
          const int rows = i == 0 ? first : count - first;
          // The rows come after other rows and have other pages. The last table ends with the array: nothing after it may be read.
          std::vector<float> part = run(m, Step(m, {{-1, 0, 1}, {1, 59 - i, 1 + i % 2}, {0, begin + i, rows}}, 3), kBoth, 2);
          part.erase(part.begin(), part.end() - rows * int(columns));
          CHECK(std::memcmp(&whole[i * columns], part.data(), part.size() * sizeof(float)) == 0);
        }
    }
  }
}

// Tests each output alone, no rows, and that non-finite values stay in their row.
void test_outputs() {
  const Model m = make_model(3, 1, 16, 16, kRandom, {300, 20}, 5);
  const std::vector<Piece> pieces = {{0, 299, 1}, {1, 17, 3}};
  const Step step(m, pieces, 1);
  const std::vector<float> both = run(m, step);
  CHECK(both == run(m, step, kOut));
  std::vector<float> rounded = both;
  for (float& x : rounded) x = rounded_to_bf16(x);
  CHECK(rounded == run(m, step, kRounded));
  CHECK(run(m, Step(m, {}, 1)).empty());

  for (const float bad : {kNaN, INFINITY}) {
    Model broken = m;
    broken.q[0][size_t(299) * m.columns() + 5] = bad;  // head 0 of the first row
    broken.k[1][size_t(19) * 16] = f32_to_bf16(bad);   // seen by the last row only
    const std::vector<float> got = run(broken, Step(broken, pieces, 1));
    for (size_t i = 0; i < got.size(); ++i)
      if (i < 16 || (i >= size_t(3 * m.columns()) && bad != INFINITY)) {
        CHECK(std::isnan(got[i]));
      } else if (i < size_t(3 * m.columns())) {
        CHECK_EQ(got[i], both[i]);
      }
  }
}

// Captures a launch with room for the largest step, and replays it for two others.
void test_replay() {
  const Model m = make_model(4, 2, 16, 16, kRandom, {600, 100}, 6);
  const std::vector<std::vector<Piece>> steps = {{{0, 599, 1}, {1, 30, 1}, {-1, 0, 1}}, {{1, 63, 1}, {-1, 0, 1}, {0, 299, 1}}};
  const int rows = 3, room = 9;
  DeviceVector<float> q(size_t(1000)), partial(size_t(room) * 4 * 18), out(size_t(rows) * 64);
  DeviceVector<uint16_t> k(size_t(60) * 2 * 16 * 16), v(k.size());
  DeviceVector<int32_t> positions(size_t(3)), tables(size_t(rows) * 40), first_partial(size_t(4));
  DeviceVector<cuda::AttentionTile> tiles(size_t(room) + 1);
  cuda::PagedAttentionArgs a = {};
  a.q = q.get(), a.num_rows = rows, a.num_heads = 4, a.scale = m.scale();
  a.q_stride = Step(m, steps[0], 1).q_stride;
  a.positions = positions.get(), a.block_tables = tables.get(), a.max_blocks = 40;
  a.cache = {k.get(), v.get(), DType::kBF16, 60, 16, 2, 16};
  a.tiles = tiles.get(), a.num_tiles = room, a.first_partial = first_partial.get(), a.num_partials = room;
  a.partial = partial.get(), a.out = out.get();
  const cuda::OwnedStream stream = cuda::make_stream();
  const cuda::Graph graph = cuda::Graph::capture({stream.get()}, [&] { cuda::attention(a, {stream.get()}); });
  for (const auto& pieces : steps) {
    const Step step(m, pieces, 1);
    std::vector<int32_t> table(size_t(rows) * 40, -1);
    for (int s = 0; s < rows; ++s)
      for (int i = 0; i < step.max_blocks; ++i) table[size_t(s) * 40 + i] = step.tables[s * step.max_blocks + i];
    std::vector<cuda::AttentionTile> padded = step.plan.tiles;
    padded.resize(size_t(room), {});
    q.write(step.q), k.write(step.k), v.write(step.v), positions.write(step.positions), tables.write(table);
    first_partial.write(step.plan.first_partial), tiles.write(padded);
    graph.launch({stream.get()});
    cuda::synchronize({stream.get()});
    CHECK(out.read() == run(m, step));
  }
}

void test_plan() {
  std::mt19937 random(7);
  for (int n = 0; n < 300; ++n) {
    const int group = 1 + int(random() % 20), lengths[] = {0, 1, 15, 64, 255, 256, 257, 512, 513, 5000};
    std::vector<int32_t> positions, query_start = {0};
    for (int s = int(random() % 6); s > 0; --s) {
      const int length = lengths[random() % 10], rows = length < 2 ? 1 : 1 + int(random() % unsigned(std::min(length, 40)));
      for (int i = 0; i < (rows > 20 ? 1 : rows); ++i) positions.push_back(length - (rows > 20 ? 1 : rows) + i);
      query_start.push_back(int32_t(positions.size()));
      if (random() % 8 == 0) query_start.push_back(int32_t(positions.size()));  // a sequence without rows
    }
    BatchView batch;
    batch.num_rows = int64_t(positions.size()), batch.num_seqs = int64_t(query_start.size()) - 1;
    batch.positions = positions.data(), batch.query_start = query_start.data();
    cuda::AttentionPlan plan, again;
    plan.tiles.resize(3), plan.first_partial.resize(90);  // as an earlier step might have left them
    const int max_partials = n % 2 == 0 ? int(random() % 8) : INT32_MAX;
    plan_attention(batch, group, max_partials, plan);
    plan_attention(batch, group, max_partials, again);
    CHECK(plan.first_partial == again.first_partial && plan.tiles.size() == again.tiles.size());
    CHECK(plan.tiles.empty() || !std::memcmp(plan.tiles.data(), again.tiles.data(), plan.tiles.size() * sizeof plan.tiles[0]));

    CHECK_EQ(plan.first_partial.size(), positions.size() + 1);
    CHECK_EQ(plan.first_partial[0], 0);
    std::vector<int> direct(positions.size()), splits(positions.size());
    int partials = 0, back = 0;  // back: how many splits of the row come after the tile's
    for (const cuda::AttentionTile& tile : plan.tiles) {
      CHECK(tile.rows == 1 || (tile.rows > 1 && tile.rows * group <= cuda::kTileQueries));
      CHECK(tile.row >= query_start[tile.sequence] && tile.row + tile.rows <= query_start[tile.sequence + 1]);
      if (tile.split < 0) {
        CHECK_EQ(back, 0);
        CHECK(std::all_of(splits.begin(), splits.end(), [](int count) { return count == 0; }));
        for (int i = 0; i < tile.rows; ++i) ++direct[tile.row + i];
      } else {
        CHECK_EQ(query_start[tile.sequence + 1] - query_start[tile.sequence], 1);
        const int all = plan.first_partial[tile.row + 1] - plan.first_partial[tile.row];
        CHECK_EQ(tile.split, all - 1 - splits[tile.row]);
        CHECK(splits[tile.row] >= back);  // the last splits of all rows come first
        back = splits[tile.row]++;
        CHECK_EQ(tile.partial, plan.first_partial[tile.row] + tile.split);
      }
    }
    for (int s = 0; s < batch.num_seqs; ++s)
      for (int t = query_start[s]; t < query_start[s + 1]; ++t) {
        const int all = int(ceil_div(positions[t] + 1, cuda::kSplitKeys));
        const int want = query_start[s + 1] - query_start[s] == 1 && all > 1 && all <= max_partials - partials ? all : 0;
        partials += want;
        CHECK_EQ(splits[t], want);
        CHECK_EQ(direct[t], want == 0);
        CHECK_EQ(plan.first_partial[t + 1] - plan.first_partial[t], want);
      }
  }
}

void test_arguments() {
  KvCacheView cache{nullptr, nullptr, DType::kBF16, 1, 16, 2, 64};
  const auto attend = [&](const KvCacheView& view, int num_heads, int window = 0, int chunk = 0) {
    cuda::PagedAttentionArgs a = {};
    a.num_heads = num_heads, a.cache = view, a.window = window, a.chunk = chunk;
    cuda::attention(a, {});
  };
  const auto unsupported = ErrorCode::kUnsupported;
  attend(cache, 4);  // no rows: nothing is launched
  CHECK_THROWS(attend(cache, 5), unsupported, "attention", {"group", "2", "5"});
  {
    cuda::PagedAttentionArgs a = {};
    a.num_heads = 1 << 10, a.num_partials = 1 << 20, a.cache = cache;
    CHECK_THROWS(cuda::attention(a, {}), unsupported, "attention", {"partial", "1048576"});
  }
  CHECK_THROWS(attend(cache, 4, -1), unsupported, "attention", {"window", "-1"});
  CHECK_THROWS(attend(cache, 4, 0, -3), unsupported, "attention", {"chunk", "-3"});
  for (const int64_t d : {0, 65, 578}) {
    cache.head_dim = d;
    CHECK_THROWS(attend(cache, 4), unsupported, "attention", {"head size", "576", std::to_string(d)});
  }
  cache.head_dim = 576;
  for (const int64_t d : {-2, 63, 514}) {
    cache.v_head_dim = d;
    CHECK_THROWS(attend(cache, 4), unsupported, "attention", {"values", "512", std::to_string(d)});
  }
  cache.head_dim = 64, cache.v_head_dim = 66;
  CHECK_THROWS(attend(cache, 4), unsupported, "attention", {"values in K", "64", "66"});
  cache.v_head_dim = 0, cache.block_size = 0;
  CHECK_THROWS(attend(cache, 4), unsupported, "attention", {"page size", "got 0"});
  cache.block_size = 16, cache.dtype = DType::kF32;
  CHECK_THROWS(attend(cache, 4), unsupported, "attention", {"bfloat16", "float32"});
}

}  // namespace

int main(int argc, char** argv) {
  const int every = argc > 1 ? std::atoi(argv[1]) : 1;
  test_against_reference(every);
  test_views(every);
  test_full(every);
  test_order(every);
  test_outputs();
  test_replay();
  test_plan();
  test_arguments();
  return check::result("test_attention");
}
