// The kernels of the ops that keep a state, over the sixteen-lane type F32x16 of the simd_*.h header that the including file chose.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "backend/cpu/kernels/kernels.h"
#include "backend/cpu/kernels/lanes_inl.h"

namespace {

constexpr int64_t kConvColumns = 64;  // channels that are convolved at a time
constexpr int64_t kMaxPast = 15;      // DeltaShape::kMaxConvWidth - 1

// Rows are convolved from the last to the first, so that the inputs of a row are still there when its result replaces it.
void short_conv(float* x, int64_t stride, int64_t rows, int64_t n, const lynx_rt::cpu::ConvFilter& filter, float* past,
                int64_t past_stride) {
  const int64_t width = filter.width, num_past = width - 1;
  for (int64_t b = 0; b < n; b += kConvColumns) {
    const int64_t count = n - b < kConvColumns ? n - b : kConvColumns;
    const auto input = [&](int64_t t) { return t < 0 ? past + (t + num_past) * past_stride + b : x + t * stride + b; };
    float next[kMaxPast][kConvColumns];
    for (int64_t j = 0; j < num_past; ++j) std::memcpy(next[j], input(rows - num_past + j), size_t(count) * 4);
    for (int64_t t = rows; t-- > 0;) {
      float sum[kConvColumns] = {}, power[kConvColumns];
      if (filter.bias) std::memcpy(sum, filter.bias + b, size_t(count) * 4);
      for (int64_t j = 0; j < width; ++j) {
        const float *in = input(t - num_past + j), *by = filter.weights + j * filter.stride + b;
        for (int64_t i = 0; i < count; ++i) sum[i] = sum[i] + by[i] * in[i];
      }
      float* out = x + t * stride + b;
      if (!filter.silu) {
        std::memcpy(out, sum, size_t(count) * 4);
        continue;
      }
      for (int64_t i = 0; i < count; ++i) power[i] = exp_f32(-sum[i]);
      for (int64_t i = 0; i < count; ++i) out[i] = sum[i] / (1.0f + power[i]);
    }
    for (int64_t j = 0; j < num_past; ++j) std::memcpy(past + j * past_stride + b, next[j], size_t(count) * 4);
  }
}

void unit_norm(float* x, int64_t n, float eps, float scale) {
  F32x16 sum = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32x16 v = load_f32(x + i);
    sum = fmadd(v, v, sum);
  }
  if (i < n) {
    const F32x16 v = load_partial<DType::kF32>(x + i, n - i);
    sum = fmadd(v, v, sum);
  }
  const float by = scale / std::sqrt(fold(sum) + eps);
  for (i = 0; i < n; ++i) x[i] = x[i] * by;
}

// The columns stay in `s`, in the first-level cache, while all rows pass. A row's update is fused with the next row's product
// with k; sums run over dk in rising order, whether they are fused or not. kCorrects: u is what v lacks, else v. kByChannel: each row of
// the state has a decay of its own, which the product with k then contains.
template <bool kCorrects, bool kByChannel>
void run_state(const lynx_rt::cpu::DeltaRows& rows, int64_t num_rows, int64_t dk, int64_t dv, int64_t begin, int64_t n,
               float* state, float* s) {
  constexpr int64_t kColumns = lynx_rt::cpu::kDeltaColumns;
  constexpr int kVectors = int(kColumns / kLanes);
  const auto by_read = [&](int64_t t, int64_t d) {
    const float k = rows.k[t * rows.stride + d];
    return broadcast(kByChannel ? k * rows.decay[t * rows.stride + d] : k);
  };
  F32x16 read[kVectors];  // state^T k; before the decay, unless that is by channel
  for (F32x16& v : read) v = zero();
  for (int64_t d = 0; d < dk; ++d) {
    float* row = s + d * kColumns;
    std::memcpy(row, state + d * dv + begin, size_t(n) * 4);
    if (n < kColumns) std::memset(row + n, 0, size_t(kColumns - n) * 4);
    if constexpr (kCorrects)
      for (int i = 0; i < kVectors; ++i) read[i] = fmadd(by_read(0, d), load_f32(row + i * kLanes), read[i]);
  }
  for (int64_t t = 0; t < num_rows; ++t) {
    const float *q = rows.q + t * rows.stride, *k = rows.k + t * rows.stride, *decays = rows.decay + t * rows.stride;
    const F32x16 beta = broadcast(rows.beta[t * rows.stride]), decay = broadcast(decays[0]);
    alignas(64) float buffer[kColumns] = {};
    std::memcpy(buffer, rows.v + t * rows.stride + begin, size_t(n) * 4);
    F32x16 u[kVectors], out[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const F32x16 v = load_f32(buffer + i * kLanes);
      if constexpr (!kCorrects)
        u[i] = beta * v;
      else if constexpr (kByChannel)
        u[i] = beta * (v - read[i]);
      else
        u[i] = beta * (v - decay * read[i]);
      out[i] = read[i] = zero();
    }
    const auto update = [&](int64_t d, auto has_next) {
      const F32x16 by_k = broadcast(k[d]), by_q = broadcast(q[d]), by = kByChannel ? broadcast(decays[d]) : decay;
      for (int i = 0; i < kVectors; ++i) {
        float* at = s + d * kColumns + i * kLanes;
        const F32x16 v = fmadd(by_k, u[i], by * load_f32(at));
        store_f32(at, v);
        out[i] = fmadd(by_q, v, out[i]);
        if constexpr (has_next.value) read[i] = fmadd(by_read(t + 1, d), v, read[i]);
      }
    };
    if (kCorrects && t + 1 < num_rows) {
      for (int64_t d = 0; d < dk; ++d) update(d, std::true_type{});
    } else {
      for (int64_t d = 0; d < dk; ++d) update(d, std::false_type{});
    }
    for (int i = 0; i < kVectors; ++i) store_f32(buffer + i * kLanes, out[i]);
    std::memcpy(rows.out + t * rows.out_stride + begin, buffer, size_t(n) * 4);
  }
  for (int64_t d = 0; d < dk; ++d) std::memcpy(state + d * dv + begin, s + d * kColumns, size_t(n) * 4);
}

// acc[i] += sum of by[j] * row j [i] over the rows, j ascending, for i < n; what `change` makes of a row's vector replaces it in the row.
template <int kRows, class Change>
inline void add_rows(const float* by, float* rows, int64_t stride, int64_t n, float* acc, const Change& change) {
  F32x16 factors[kRows];
  for (int j = 0; j < kRows; ++j) factors[j] = broadcast(by[j]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F32x16 sum = load_f32(acc + i);
    for (int j = 0; j < kRows; ++j) sum = fmadd(factors[j], change(j, i, load_f32(rows + j * stride + i), kLanes), sum);
    store_f32(acc + i, sum);
  }
  if (i == n) return;
  F32x16 sum = load_f32(acc + i);
  for (int j = 0; j < kRows; ++j)
    sum = fmadd(factors[j], change(j, i, load_partial<DType::kF32>(rows + j * stride + i, n - i), n - i), sum);
  store_f32(acc + i, sum);
}

// Runs all columns through one row, where the state lies, a few rows of it at a time: it is read in the order of memory, and again and
// written in the second-level cache. Sums run over dk in rising order, as in delta_rule(): both give the same bits.
void delta_row(const lynx_rt::cpu::DeltaRows& row, int64_t dk, int64_t dv, float* state, float* scratch) {
  constexpr int kRows = 4;
  const int64_t padded = (dv + kLanes - 1) / kLanes * kLanes;
  float *u = scratch, *out = scratch + padded;
  std::memset(scratch, 0, size_t(2 * padded) * 4);
  const auto read = [&](auto count, int64_t d) {
    add_rows<count.value>(row.k + d, state + d * dv, dv, dv, u, [](int, int64_t, F32x16 v, int64_t) { return v; });
  };
  int64_t d = 0;
  for (; d + kRows <= dk; d += kRows) read(std::integral_constant<int, kRows>{}, d);
  for (; d < dk; ++d) read(std::integral_constant<int, 1>{}, d);

  const F32x16 decay = broadcast(*row.decay), beta = broadcast(*row.beta);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const F32x16 v = i + kLanes <= dv ? load_f32(row.v + i) : load_partial<DType::kF32>(row.v + i, dv - i);
    store_f32(u + i, beta * (v - decay * load_f32(u + i)));
  }
  const auto update = [&](auto count, int64_t first) {
    F32x16 by_k[count.value];
    for (int j = 0; j < count.value; ++j) by_k[j] = broadcast(row.k[first + j]);
    add_rows<count.value>(row.q + first, state + first * dv, dv, dv, out, [&](int j, int64_t i, F32x16 v, int64_t n) {
      v = fmadd(by_k[j], load_f32(u + i), decay * v);
      float* to = state + (first + j) * dv + i;
      if (n == kLanes) {
        store_f32(to, v);
      } else {
        alignas(64) float buffer[kLanes];
        store_f32(buffer, v);
        std::memcpy(to, buffer, size_t(n) * 4);
      }
      return v;
    });
  };
  for (d = 0; d + kRows <= dk; d += kRows) update(std::integral_constant<int, kRows>{}, d);
  for (; d < dk; ++d) update(std::integral_constant<int, 1>{}, d);
  std::memcpy(row.out, out, size_t(dv) * 4);
}

}  // namespace
