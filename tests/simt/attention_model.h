// Sequences for test_attention.cc, and steps made of them. Pages are shuffled, values that no row may read are NaN, and table entries
// after a sequence's last page are garbage.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "base/types.h"

constexpr uint16_t kNaN16 = 0x7fff;
const float kNaN = std::nanf("");

enum Kind {
  kRandom,
  // In these two kinds V is integers below 256, and all scores that count are equal, so the result is a mean of V to the last bit.
  kUniform,  // q = 0
  kOneKey,   // one key of each sequence and kv head outweighs the others by e^300
  kNumKinds
};

// The keys that a row sees, and the place of V.
struct View {
  int v_dim = 0;        // 0 = D
  bool latent = false;  // V is the first columns of K
  int window = 0, chunk = 0;
  bool sinks = false;
  bool full = false;  // no causal mask: a row sees the keys up to the last of its piece
};

// Sequences with K, V and q at every position. K and V have the cache's dtype, [sequence][position][head][D].
struct Model {
  int num_heads, num_kv_heads, head_dim, block_size;
  Kind kind;
  std::vector<int> lengths;
  View view;
  std::vector<std::vector<float>> q;
  std::vector<std::vector<uint16_t>> k, v;  // v is filled where V is in K, too
  std::vector<float> sinks;

  int v_dim() const { return view.v_dim ? view.v_dim : head_dim; }
  int group() const { return num_heads / num_kv_heads; }
  int q_columns() const { return num_heads * head_dim; }
  int columns() const { return num_heads * v_dim(); }  // columns of the result
  int first_key(int position) const {
    const int window = view.window ? position - view.window + 1 : 0, chunk = view.chunk ? position / view.chunk * view.chunk : 0;
    return std::max({0, window, chunk});
  }
  float scale() const { return float(1 / std::sqrt(double(head_dim))); }
  std::string text() const {
    return "A=" + std::to_string(num_heads) + " G=" + std::to_string(num_kv_heads) + " D=" + std::to_string(head_dim) + " page " +
           std::to_string(block_size) + " kind " + std::to_string(kind) + " Dv=" + std::to_string(v_dim()) +
           (view.latent ? " latent" : "") + " window " + std::to_string(view.window) + " chunk " + std::to_string(view.chunk) +
           (view.sinks ? " sinks" : "") + (view.full ? " full" : "");
  }
};

inline Model make_model(int num_heads, int num_kv_heads, int head_dim, int block_size, Kind kind, std::vector<int> lengths,
                        unsigned seed, const View& view = {}) {
  Model m{num_heads, num_kv_heads, head_dim, block_size, kind, std::move(lengths), view, {}, {}, {}, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  const int d = head_dim, dv = m.v_dim(), row = num_kv_heads * d;
  for (int a = 0; a < num_heads && view.sinks; ++a) m.sinks.push_back(a % 5 == 3 ? -90.0f : 3 * normal(random));
  for (const int length : m.lengths) {
    std::vector<float> q(size_t(length) * m.q_columns());
    std::vector<uint16_t> k(size_t(length) * row), v(size_t(length) * num_kv_heads * dv);
    for (float& x : q) x = kind == kRandom ? 1.5f * normal(random) : kind == kUniform ? 0.0f : 1.0f;
    for (uint16_t& x : k) x = kind == kOneKey ? 0 : lynx_rt::f32_to_bf16(normal(random));
    for (uint16_t& x : v) x = lynx_rt::f32_to_bf16(kind == kRandom ? normal(random) : float(random() % 256));
    for (int g = 0; kind == kOneKey && g < num_kv_heads; ++g) {
      const size_t key = random() % unsigned(length), column = random() % unsigned(d);
      k[key * row + g * d + column] = lynx_rt::f32_to_bf16(float(304 * std::sqrt(d)));  // 300 even where bf16 rounds it down
    }
    for (size_t i = 0; i < v.size() && view.latent; ++i) {  // kOneKey: V is not integers
      uint16_t& in_k = k[i / dv * d + i % dv];
      if (kind == kUniform) in_k = v[i];
      v[i] = in_k;
    }
    m.q.push_back(q), m.k.push_back(k), m.v.push_back(v);
  }
  return m;
}

// Consecutive positions of a sequence as rows of a step; sequence -1 is a padding row.
struct Piece {
  int sequence, first, rows;
};

// The arguments of a step, in host memory.
struct Step {
  std::vector<int32_t> positions, query_start = {0}, tables;
  int64_t max_blocks = 1, num_blocks = 0;
  std::vector<uint16_t> k, v;
  std::vector<float> q;
  int64_t q_stride = 0;
  lynx_rt::cuda::AttentionPlan plan;

  Step(const Model& m, const std::vector<Piece>& pieces, unsigned seed) {
    std::mt19937 random(seed);
    const int d = m.head_dim, dv = m.v_dim(), bs = m.block_size, g = m.num_kv_heads;
    std::vector<int> pages, order;
    for (const Piece& p : pieces) {
      pages.push_back(p.sequence < 0 ? 0 : int(lynx_rt::ceil_div(p.first + p.rows, bs)));
      max_blocks = std::max<int64_t>(max_blocks, pages.back() + 1);
      num_blocks += pages.back();
    }
    num_blocks += 2;  // blocks of no sequence
    for (int i = 0; i < num_blocks; ++i) order.push_back(i);
    std::shuffle(order.begin(), order.end(), random);
    k.assign(size_t(num_blocks) * g * bs * d, kNaN16), v.assign(m.view.latent ? 0 : size_t(num_blocks) * g * bs * dv, kNaN16);
    q_stride = m.q_columns() + 2 * g * d + 2;
    for (const Piece& p : pieces) {
      const size_t table = tables.size();
      for (int i = 0; i < max_blocks; ++i) {
        const int garbage[] = {0, -1, std::numeric_limits<int32_t>::max(), int(num_blocks)};
        tables.push_back(garbage[random() % 4]);
        if (p.sequence >= 0 && i < m.first_key(p.first) / bs)
          tables.back() = lynx_rt::kFreedBlock;  // no row sees the page
        else if (i < pages[query_start.size() - 1])
          tables.back() = order.back(), order.pop_back();
      }
      for (int i = 0; i < p.rows; ++i) {
        positions.push_back(p.sequence < 0 ? -1 : p.first + i);
        q.resize(q.size() + size_t(q_stride), kNaN);
        if (p.sequence >= 0)
          std::copy_n(&m.q[p.sequence][size_t(p.first + i) * m.q_columns()], m.q_columns(), q.end() - q_stride);
      }
      query_start.push_back(int32_t(positions.size()));
      for (int key = m.first_key(p.first); p.sequence >= 0 && key < p.first + p.rows; ++key)
        for (int h = 0; h < g; ++h) {
          const size_t to = (size_t(tables[table + key / bs]) * g + h) * bs + key % bs, from = size_t(key) * g + h;
          std::copy_n(&m.k[p.sequence][from * d], d, &k[to * d]);
          if (!m.view.latent) std::copy_n(&m.v[p.sequence][from * dv], dv, &v[to * dv]);
        }
    }
    lynx_rt::BatchView batch;
    batch.num_rows = int64_t(positions.size());
    batch.num_seqs = int64_t(pieces.size());
    batch.positions = positions.data();
    batch.query_start = query_start.data();
    lynx_rt::cuda::plan_attention(batch, m.group(), INT32_MAX, plan);
  }
  int num_rows() const { return int(positions.size()); }
  int num_partials() const { return plan.first_partial.back(); }
};
