// The common part of the quantised products of NEON. A register of weights is a *part* of a line: four columns of four weight rows.
#pragma once
#include <arm_neon.h>

#include "backend/cpu/kernels/quant_inl.h"

namespace {

constexpr int kPartRows = 4, kParts = int(Quant::kPanel) / kPartRows;

// Columns 8 e .. 8 e + 3 and 8 e + 4 .. 8 e + 7 of a part, unsigned.
template <int Bits>
inline uint8x16x2_t eight_columns(const char* lines, int64_t e, int part) {
  const uint8_t* line = reinterpret_cast<const uint8_t*>(lines) + e * (Bits / 4) * Quant::kLine + 16 * part;
  const uint8x16_t u = vld1q_u8(line);
  if constexpr (Bits == 8)
    return {u, vld1q_u8(line + Quant::kLine)};
  else
    return {vandq_u8(u, vdupq_n_u8(15)), vshrq_n_u8(u, 4)};
}

// Prefetches what eight_columns() reads of all parts, a fixed distance ahead.
template <int Bits>
inline void prefetch_columns(const char* lines, int64_t e) {
  const char* to = lines + e * (Bits / 4) * Quant::kLine + kAheadBytes;
  __builtin_prefetch(to);
  if constexpr (Bits == 8) __builtin_prefetch(to + Quant::kLine);
}

// acc[4 part + r] += float(dots[r] - zero) * (scale of weight row 4 part + r * x_scale); w is the group.
inline void add_part(int32x4_t dots, int32_t zero, const char* w, float x_scale, int part, float* acc) {
  const float32x4_t scale = vmulq_n_f32(vld1q_f32(reinterpret_cast<const float*>(w) + kPartRows * part), x_scale);
  const float32x4_t value = vmulq_f32(vcvtq_f32_s32(vsubq_s32(dots, vdupq_n_s32(zero))), scale);
  acc += kPartRows * part;
  vst1q_f32(acc, vaddq_f32(vld1q_f32(acc), value));
}

// Adds one group of a panel, at w, to the sums of MR rows of x. The including file defines it for MR = 1, 2, 4 .. Most.
template <int Bits, int MR>
inline void rows_of_group(const char* w, QuantRows x, int64_t g, QuantSums* acc);

template <int Bits, int MR>
inline void all_rows(const char* w, QuantRows x, int64_t count, int64_t g, QuantSums* acc) {
  int64_t j = 0;
  for (; j + MR <= count; j += MR) rows_of_group<Bits, MR>(w, x.from(j), g, acc + j);
  if constexpr (MR > 1)
    if (j < count) all_rows<Bits, MR / 2>(w, x.from(j), count - j, g, acc + j);
}

template <int Bits, int Most>
void gemm(const void* weights, int64_t w_stride, int64_t n, const void* rows, int64_t x_stride, int64_t m, int64_t k, float* out,
          int64_t out_stride, bool accumulate, const void*) {
  for_groups<Bits>(weights, w_stride, n, rows, x_stride, m, k, out, out_stride, accumulate, all_rows<Bits, Most>);
}

}  // namespace
