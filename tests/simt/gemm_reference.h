// Weights, inputs and outputs of products in device memory, and float64 references, for test_gemm.cc and test_experts.cc.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "backend/cuda/gemm/expert_ffn.h"
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/gemm/packed.h"
#include "check.h"
#include "coded_matrix.h"
#include "device_array.h"

namespace gemm {

using namespace lynx_rt;
using cuda::padded_columns;
using cuda::padded_rows;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kUntouched = -77.0f;
constexpr size_t kGuard = 64;  // elements after an output that must stay unchanged

// Returns random values that bf16 has.
inline std::vector<float> random_values(size_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(count);
  for (float& v : values) v = bf16_to_f32(f32_to_bf16(normal(generator)));
  return values;
}

inline std::vector<uint16_t> to_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> out(values.size());
  std::transform(values.begin(), values.end(), out.begin(), f32_to_bf16);
  return out;
}

// Returns rows of `columns` floats as rounded activations.
inline std::vector<uint16_t> rounded_rows(const std::vector<float>& x, int columns) {
  const size_t rows = x.size() / columns, stride = size_t(padded_columns(columns));
  std::vector<uint16_t> out(rows * stride);
  for (size_t r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) out[r * stride + c] = f32_to_bf16(x[r * columns + c]);
  return out;
}

inline void pack_values(const std::vector<float>& values, int rows, int columns, void* to, int parts = 1, int part = 0) {
  const DeviceVector<uint16_t> source(to_bf16(values));
  cuda::pack(source.get(), DType::kBF16, 0, rows, columns, {to, parts, part}, {});
  cuda::synchronize({});
}

// The largest error of a sum of `terms` float32 products whose magnitudes sum to `magnitude`: every addition rounds by at most 2^-23
// of the magnitude so far (tensor cores truncate where the emulation rounds), and there are terms + warps + 2 additions.
inline double sum_error(int terms, double magnitude) { return (terms + 10) * std::ldexp(magnitude, -23); }

struct Dot {
  double value = 0, error = 0;
};
inline Dot dot(const float* a, const float* b, int n) {
  Dot d;
  double magnitude = 0;
  for (int i = 0; i < n; ++i) {
    d.value += double(a[i]) * b[i];
    magnitude += std::abs(double(a[i]) * b[i]);
  }
  d.error = sum_error(n, magnitude);
  return d;
}

template <class T>
bool same_bits(const T* a, const T* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(T)) == 0;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size());
}

struct Linear {
  int columns;
  std::vector<int> part_rows;
  std::vector<std::vector<float>> weights, biases;  // a part's bias may be empty
  std::vector<DeviceVector<uint8_t>> packed;
  std::vector<cuda::PackedForm> forms;
  std::vector<DeviceVector<float>> device_biases;
  int out_stride = 3;  // columns 0 .. 2 and those between the parts belong to no part

  // kinds: of the parts in turn; empty: bf16.
  Linear(int num_columns, const std::vector<int>& rows, bool bias, const std::vector<Kind>& kinds = {})
      : columns(num_columns), part_rows(rows) {
    for (size_t i = 0; i < rows.size(); ++i) {
      out_stride += rows[i] + 2;
      biases.push_back(bias && i % 2 == 0 ? random_values(size_t(rows[i])) : std::vector<float>{});
      device_biases.emplace_back(biases.back());
      if (!kinds.empty()) {
        const CodedMatrix coded(kinds[i % kinds.size()], rows[i], columns);
        forms.push_back(coded.form());
        weights.push_back(coded.values);
        packed.emplace_back(size_t(cuda::packed_bytes(rows[i], columns, forms.back())));
        coded.pack(packed.back().get(), 1, 0, 16 + 16 * random_below(3));
        continue;
      }
      forms.emplace_back();
      weights.push_back(random_values(size_t(rows[i]) * columns));
      packed.emplace_back(size_t(cuda::packed_bytes(rows[i], columns)));
      pack_values(weights.back(), rows[i], columns, packed.back().get());
    }
  }
  // Makes all parts bf16.
  void decode() {
    for (size_t i = 0; i < part_rows.size(); ++i) {
      forms[i] = {};
      packed[i] = DeviceVector<uint8_t>(size_t(cuda::packed_bytes(part_rows[i], columns)));
      pack_values(weights[i], part_rows[i], columns, packed[i].get());
    }
  }
  // Returns out_column of a part; the last part comes first.
  int column_of(size_t part) const {
    int column = 3;
    for (size_t i = part_rows.size() - 1; i > part; --i) column += part_rows[i] + 2;
    return column;
  }
  // gates: one per row, or empty.
  std::vector<float> run(const std::vector<float>& x, int num_sms, bool accumulate, const std::vector<float>& out,
                         float scale = 1, const std::vector<float>& gates = {}) const {
    const DeviceVector<uint16_t> rounded(rounded_rows(x, columns));
    const DeviceVector<float> device_gates(gates);
    DeviceVector<float> result(out);
    cuda::LinearArgs args = {};
    args.scale = scale;
    args.row_gate = gates.empty() ? nullptr : device_gates.get();
    args.x = rounded.get();
    args.num_rows = int(x.size()) / columns;
    args.num_columns = columns;
    args.num_parts = int(part_rows.size());
    for (size_t i = 0; i < part_rows.size(); ++i)
      args.parts[i] = {packed[i].get(), biases[i].empty() ? nullptr : device_biases[i].get(), part_rows[i], column_of(i),
                       forms[i]};
    args.out = result.get();
    args.out_stride = out_stride;
    args.accumulate = accumulate;
    cuda::linear(args, num_sms, {});
    return result.read();
  }
};

// --- experts

// Options of the experts beside their products.
struct Extras {
  bool bias = false;
  FfnRule ffn;  // scale_input does not apply to a dense MLP
  bool no_up = ffn.activation == Activation::kRelu2 || ffn.activation == Activation::kGelu;
};

struct Experts {
  int num_experts, hidden, width;
  Extras extras;
  bool gated() const { return !extras.no_up; }  // whether they have up

  int64_t gate_up_bytes, down_bytes;
  std::vector<std::vector<float>> gate, up, down;
  DeviceVector<uint8_t> gate_up_packed, down_packed;
  std::vector<float> gate_bias, up_bias, down_bias;  // of all experts
  DeviceVector<float> device_gate_bias, device_up_bias, device_down_bias;
  std::vector<cuda::ExpertEntry> entries;  // the experts are in memory in the opposite order
  DeviceVector<cuda::ExpertEntry> table;

  Experts(int experts, int hidden_size, int expert_width, const Extras& more = {})
      : num_experts(experts), hidden(hidden_size), width(expert_width), extras(more) {
    gate_up_bytes = 2 * cuda::packed_bytes(width, hidden) + 256;  // a gap, as alignment makes them
    down_bytes = cuda::packed_bytes(hidden, width) + 512;
    // The gaps between the experts must not be used.
    gate_up_packed = DeviceVector<uint8_t>(std::vector<uint8_t>(size_t(experts * gate_up_bytes), 0xff));
    down_packed = DeviceVector<uint8_t>(std::vector<uint8_t>(size_t(experts * down_bytes), 0xff));
    const float scale = 2 / std::sqrt(float(hidden));
    for (int e = 0; e < experts; ++e) {
      const int place = experts - 1 - e;
      entries.push_back({gate_up_packed.get() + place * gate_up_bytes, down_packed.get() + place * down_bytes});
      gate.push_back(random_values(size_t(width) * hidden, scale));
      up.push_back(random_values(size_t(width) * hidden, scale));
      down.push_back(random_values(size_t(hidden) * width));
      pack(e);
    }
    if (extras.bias) add_biases();
    table = DeviceVector<cuda::ExpertEntry>(entries);
  }

  // Gives an expert random weights in codes.
  void encode(int e, const Kind& of_gate_up, const Kind& of_down) {
    const CodedMatrix g(of_gate_up, width, hidden), u(of_gate_up, width, hidden), d(of_down, hidden, width);
    cuda::ExpertEntry& entry = entries[size_t(e)];
    entry.gate_up_form = g.form(), entry.down_form = d.form();
    gate[size_t(e)] = g.values, up[size_t(e)] = u.values, down[size_t(e)] = d.values;
    g.pack(const_cast<void*>(entry.gate_up), gated() ? 2 : 1, 0, 16);
    if (gated()) u.pack(const_cast<void*>(entry.gate_up), 2, 1);
    d.pack(const_cast<void*>(entry.down), 1, 0, 32);
    table = DeviceVector<cuda::ExpertEntry>(entries);
  }
  // Makes all weights bf16.
  void decode() {
    for (int e = 0; e < num_experts; ++e) {
      entries[size_t(e)].gate_up_form = entries[size_t(e)].down_form = {};
      pack(e);
    }
    table = DeviceVector<cuda::ExpertEntry>(entries);
  }
  int bits(cuda::PackedForm cuda::ExpertEntry::* form, bool dense) const {
    int all = 0;
    for (const cuda::ExpertEntry& e : entries)
      if (!dense || &e == entries.data()) all |= (e.*form).bits;
    return all;
  }

 private:
  void pack(int e) {
    void *gate_up = const_cast<void*>(entries[size_t(e)].gate_up), *to = const_cast<void*>(entries[size_t(e)].down);
    pack_values(gate[size_t(e)], width, hidden, gate_up, gated() ? 2 : 1, 0);
    if (gated()) pack_values(up[size_t(e)], width, hidden, gate_up, 2, 1);
    pack_values(down[size_t(e)], hidden, width, to);
  }
  void add_biases() {
    const int experts = num_experts;
    gate_bias = random_values(size_t(experts) * width), up_bias = random_values(size_t(experts) * width);
    down_bias = random_values(size_t(experts) * hidden);
    device_gate_bias = DeviceVector<float>(gate_bias), device_up_bias = DeviceVector<float>(up_bias);
    device_down_bias = DeviceVector<float>(down_bias);
    for (int e = 0; e < experts; ++e) {
      entries[size_t(e)].gate_bias = device_gate_bias.get() + e * width;
      entries[size_t(e)].up_bias = device_up_bias.get() + e * width;
      entries[size_t(e)].down_bias = device_down_bias.get() + e * hidden;
    }
  }
};

// The pairs ordered by expert, and their tiles, as route() makes them.
struct Plan {
  std::vector<int32_t> pair_of_sorted, expert_of_place;
  std::vector<cuda::Tile> tiles;

  Plan(const std::vector<int32_t>& ids, int num_rows, int num_experts) {
    const int tile_rows = cuda::tile_rows(num_rows);
    for (int e = 0; e < num_experts; ++e) {
      const int first = int(pair_of_sorted.size());
      for (size_t pair = 0; pair < ids.size(); ++pair)
        if (ids[pair] == e) pair_of_sorted.push_back(int32_t(pair)), expert_of_place.push_back(e);
      for (int at = first; at < int(pair_of_sorted.size()); at += tile_rows)
        tiles.push_back({e, at, std::min(tile_rows, int(pair_of_sorted.size()) - at)});
    }
    CHECK(int64_t(tiles.size()) <= cuda::max_tiles(int64_t(ids.size()), num_experts, tile_rows));
  }
};

// The weight of a pair where it scales the input: some are 0, and neighbours differ.
inline float pair_weight(int pair) { return float(pair % 5) * 0.375f; }

struct Result {
  std::vector<uint16_t> hidden;  // by place
  std::vector<float> partial;    // by pair
  int hidden_stride;
};

// Runs the dense MLP where ids is empty.
inline Result run_experts(const Experts& experts, const std::vector<float>& x, const std::vector<int32_t>& ids, int top_k,
                          int num_sms) {
  const int num_rows = int(x.size()) / experts.hidden, stride = int(padded_columns(experts.width));
  Plan plan(ids, num_rows, experts.num_experts);
  const size_t num_pairs = size_t(num_rows) * top_k;
  plan.pair_of_sorted.resize(std::max(num_pairs, size_t{1}), 1 << 30);  // entries after the last place must not be used
  DeviceVector<uint16_t> rounded(rounded_rows(x, experts.hidden));
  DeviceVector<int32_t> pair_of_sorted(plan.pair_of_sorted), num_tiles(std::vector<int32_t>{int32_t(plan.tiles.size())});
  plan.tiles.resize(plan.tiles.size() + 5, {1 << 30, 1 << 30, 1 << 30});
  DeviceVector<cuda::Tile> tiles(plan.tiles);
  DeviceVector<uint16_t> hidden(std::vector<uint16_t>(num_pairs * stride + kGuard, 0xabcd));
  DeviceVector<float> partial(std::vector<float>(num_pairs * experts.hidden + kGuard, kUntouched));

  cuda::GateUpArgs first = {};
  first.x = rounded.get();
  first.experts = ids.empty() ? nullptr : experts.table.get();
  first.num_experts = experts.num_experts;
  if (ids.empty()) first.dense = experts.entries[0];
  first.biased = experts.extras.bias;
  first.num_rows = num_rows;
  first.hidden_size = experts.hidden;
  first.width = experts.width;
  first.top_k = top_k;
  first.pair_of_sorted = ids.empty() ? nullptr : pair_of_sorted.get();
  first.tiles = ids.empty() ? nullptr : tiles.get();
  first.num_tiles = ids.empty() ? nullptr : num_tiles.get();
  first.hidden = hidden.get();
  std::vector<float> weights;
  for (size_t pair = 0; pair < num_pairs; ++pair) weights.push_back(pair_weight(int(pair)));
  const DeviceVector<float> pair_scale(weights);
  first.pair_scale = experts.extras.ffn.scale_input ? pair_scale.get() : nullptr;
  first.ffn = experts.extras.ffn;
  first.bits = experts.bits(&cuda::ExpertEntry::gate_up_form, ids.empty());
  first.gated = experts.gated();
  cuda::gate_up(first, num_sms, {});
  cuda::DownArgs second{first, hidden.get(), partial.get()};
  second.bits = experts.bits(&cuda::ExpertEntry::down_form, ids.empty());
  cuda::down(second, num_sms, {});
  return {hidden.read(), partial.read(), stride};
}

}  // namespace gemm
