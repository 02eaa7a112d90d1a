// The common part of the quantised products of all instruction sets. quant.h defines the arithmetic.
#pragma once
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernels/passes.h"
#include "backend/cpu/kernels/quant.h"
#include "backend/cpu/kernels/quant_scale_inl.h"

namespace {

constexpr int64_t kMaxRows = 64;  // rows of x that a panel is multiplied with at a time; their sums stay in the first-level cache
// Bytes between the prefetch of a line of weights and its use.
constexpr int64_t kAheadBytes = 4096;

template <int Bits>
constexpr int kZero = 1 << (Bits - 1);
template <int Bits>
constexpr int64_t kGroupLines = Quant::kGroup * Quant::kPanel * Bits / 8 / Quant::kLine;
template <int Bits>
constexpr int64_t kGroupBytes = Quant::group_bytes(Bits);

// The packed rows of x, with access to their parts.
struct QuantRows {
  const char* data;
  int64_t stride, groups;

  const char* bytes(int64_t j, int64_t g) const { return data + j * stride + g * Quant::kGroup; }
  float scale(int64_t j, int64_t g) const { return Quant::x_scales(data + j * stride, groups)[g]; }
  int32_t sum(int64_t j, int64_t g) const { return Quant::x_sums(data + j * stride, groups)[g]; }
  QuantRows from(int64_t j) const { return {data + j * stride, stride, groups}; }
};

using QuantSums = float[Quant::kPanel];

// Puts the sums of a panel and a row of x where they belong; `rows` of them exist, or all.
inline void put_sums(QuantSums& sums, int64_t rows, float* out, bool accumulate) {
  const size_t bytes = rows < Quant::kPanel ? size_t(4 * rows) : sizeof sums;
  if (accumulate) {
    QuantSums before = {};
    std::memcpy(before, out, bytes);
    for (int64_t r = 0; r < Quant::kPanel; ++r) sums[r] = before[r] + sums[r];
  }
  if (rows >= Quant::kPanel)
    std::memcpy(out, sums, sizeof sums);  // a size that the compiler knows
  else
    std::memcpy(out, sums, bytes);
}

// Calls group(panel's group, rows of x, their number, g, sums) for every panel and group: a group is multiplied with all rows of x
// before the next.
template <int Bits, class Group>
inline void for_groups(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k,
                       float* out, int64_t out_stride, bool accumulate, Group group) {
  const QuantRows all{static_cast<const char*>(rows), x_stride, Quant::groups(k)};
  for (int64_t i = 0; i < n; i += Quant::kPanel)
    for (int64_t first = 0; first < m; first += kMaxRows) {
      const int64_t count = m - first < kMaxRows ? m - first : kMaxRows;
      const QuantRows x = all.from(first);
      alignas(64) QuantSums acc[kMaxRows];
      std::memset(acc, 0, size_t(count) * sizeof acc[0]);
      const char* w = static_cast<const char*>(weights) + i * w_stride;
      for (int64_t g = 0; g < x.groups; ++g, w += kGroupBytes<Bits>) group(w, x, count, g, acc);
      for (int64_t j = 0; j < count; ++j) put_sums(acc[j], n - i, out + (first + j) * out_stride + i, accumulate);
    }
}

// Packs columns [begin, begin + n) of m rows, in plain operations, so that all instruction sets agree.
void pack_quant(const float* const* x, int64_t m, int64_t begin, int64_t n, void* out, int64_t x_stride) {
  const int64_t groups = Quant::x_groups(x_stride);
  for (int64_t j = 0; j < m; ++j) {
    char* row = static_cast<char*>(out) + j * x_stride;
    float* scales = const_cast<float*>(Quant::x_scales(row, groups));
    int32_t* sums = const_cast<int32_t*>(Quant::x_sums(row, groups));
    for (int64_t p = 0; p < n; p += Quant::kGroup) {
      const int64_t g = (begin + p) / Quant::kGroup;
      int8_t q[Quant::kGroup];
      scales[g] = quantize_x(x[j] + p, n - p, q);
      std::memcpy(row + g * Quant::kGroup, q, sizeof q);
      int32_t sum = 0;
      for (int64_t i = 0; i < Quant::kGroup; ++i) sum += q[i];
      sums[g] = sum;
    }
  }
}

// Makes a group of a panel from values [16, Quant::kGroup].
template <int Bits>
void quantize_group(const float* values, char* group) {
  for (int64_t r = 0; r < Quant::kPanel; ++r) {
    const float* v = values + r * Quant::kGroup;
    const QuantScale scale(v, Quant::kGroup, Bits == 8 ? 127.0f : 8.0f, Bits == 4);
    std::memcpy(group + 4 * r, &scale.scale, 4);
    uint8_t u[Quant::kGroup];
    for (int64_t i = 0; i < Quant::kGroup; ++i) {
      const int32_t q = scale.steps(v[i]);
      u[i] = uint8_t((q < kZero<Bits> ? q : kZero<Bits> - 1) + kZero<Bits>);
    }
    char* to = group + Quant::kLine + 4 * r;
    for (int64_t l = 0; l < kGroupLines<Bits>; ++l) {
      const uint8_t* from = u + Quant::kGroup / kGroupLines<Bits> * l;
      if constexpr (Bits == 8) {
        std::memcpy(to + l * Quant::kLine, from, 4);
      } else {
        for (int64_t c = 0; c < 4; ++c) to[l * Quant::kLine + c] = char(from[c] | from[4 + c] << 4);
      }
    }
  }
}

}  // namespace
