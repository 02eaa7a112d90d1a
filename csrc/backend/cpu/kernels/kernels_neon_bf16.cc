#include "backend/cpu/kernels/simd_neon.h"
// The simd header must come first: the kernels are written over its types.
#include "backend/cpu/kernels/kernels_inl.h"

// bf16 x bf16 dot products with bfmmla, which multiplies four columns of two weight rows with those of two rows of x.
//
// Arithmetic: an element has two sums, of columns 8 t .. 8 t + 3 and of columns 8 t + 4 .. 8 t + 7, t ascending, which are added at the
// end. To its sum bfmmla adds a[0] b[0] + a[1] b[1], then a[2] b[2] + a[3] b[3] (Arm ARM, BFMatMulAdd() with FPCR.EBF = 0). Products are
// exact; each of its additions is rounded to odd, an error of up to an ulp, twice that of rounding to nearest. So there are k / 4 + 1
// such additions on a path and a last one rounded to nearest: (k / 2 + 3) units, and none for k = 1, within the 4 k of
// tests/tolerance.py. Inputs and results below 2^-126 count as zero. The order depends on k alone: columns beyond it are zeros, and a
// row of x, or of weights, that has no partner is multiplied in halves of a register to the same sums.
namespace {

constexpr int64_t kStep = 8;   // columns of a register
constexpr int64_t kLine = 32;  // columns of a line of 64 bytes

inline bfloat16x8_t load_columns(const char* row, int64_t p) { return vld1q_bf16(reinterpret_cast<const bfloat16_t*>(row) + p); }

// Loads columns p .. k - 1 of a row, fewer than eight, and zeros.
inline bfloat16x8_t load_rest(const char* row, int64_t p, int64_t k) {
  alignas(16) char columns[16] = {};
  std::memcpy(columns, row + 2 * p, size_t(2 * (k - p)));
  return load_columns(columns, 0);
}

inline void unite(bfloat16x8_t a, bfloat16x8_t b, bfloat16x8_t (&halves)[2]) {
  const float64x2_t u = vreinterpretq_f64_bf16(a), v = vreinterpretq_f64_bf16(b);
  halves[0] = vreinterpretq_bf16_f64(vzip1q_f64(u, v));
  halves[1] = vreinterpretq_bf16_f64(vzip2q_f64(u, v));
}

inline void put(float v, float* to, bool accumulate) { *to = accumulate ? *to + v : v; }

struct Rows {
  const char* data;
  int64_t stride;

  const char* row(int64_t i) const { return data + i * stride; }
  Rows from(int64_t i) const { return {row(i), stride}; }
};

// Calls add(load) for all registers of columns, p ascending; load(row) returns the columns of a row from p on. In the first pass over
// the weights it prefetches the NR rows after w.
template <int NR, class Add>
inline void for_columns(Rows w, int64_t k, bool first_pass, Add add) {
  int64_t p = 0;
  for (; p + kLine <= k; p += kLine) {
    if (first_pass)
      for (int i = 0; i < NR; ++i) prefetch(w.row(i + NR) + 2 * p);
#pragma GCC unroll 4
    for (int64_t s = 0; s < kLine; s += kStep) add([p, s](const char* row) { return load_columns(row, p + s); });
  }
  for (; p + kStep <= k; p += kStep) add([p](const char* row) { return load_columns(row, p); });
  if (p < k) add([p, k](const char* row) { return load_rest(row, p, k); });
}

// Pairs of rows: NR weight rows with MR rows of x, both even.
template <int NR, int MR>
inline void pairs_tile(Rows w, Rows x, int64_t k, float* out, int64_t out_stride, bool accumulate, bool first_pass) {
  float32x4_t acc[NR / 2][MR / 2][2];
  for (auto& pair : acc)
    for (auto& block : pair) block[0] = block[1] = vdupq_n_f32(0);
  for_columns<NR>(w, k, first_pass, [&](auto load) {
    bfloat16x8_t v[MR / 2][2];
#pragma GCC unroll 4
    for (int j = 0; j < MR / 2; ++j) unite(load(x.row(2 * j)), load(x.row(2 * j + 1)), v[j]);
#pragma GCC unroll 4
    for (int i = 0; i < NR / 2; ++i) {
      bfloat16x8_t u[2];
      unite(load(w.row(2 * i)), load(w.row(2 * i + 1)), u);
#pragma GCC unroll 4
      for (int j = 0; j < MR / 2; ++j)
        for (int h = 0; h < 2; ++h) acc[i][j][h] = vbfmmlaq_f32(acc[i][j][h], u[h], v[j][h]);
    }
  });
#pragma GCC unroll 4
  for (int i = 0; i < NR / 2; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < MR / 2; ++j) {
      float block[4];  // of weight row 2 i with rows 2 j and 2 j + 1, of weight row 2 i + 1
      vst1q_f32(block, vaddq_f32(acc[i][j][0], acc[i][j][1]));
      for (int b = 0; b < 4; ++b) put(block[b], out + (2 * j + b % 2) * out_stride + 2 * i + b / 2, accumulate);
    }
}

// One row of x: the halves of a register are its two sums' columns. So lanes 0 and 3 are the sums; lanes 1 and 2 mean nothing.
template <int NR>
inline void row_tile(Rows w, const char* x, int64_t k, float* out, bool accumulate, bool first_pass) {
  float32x4_t acc[NR];
  for (float32x4_t& a : acc) a = vdupq_n_f32(0);
  for_columns<NR>(w, k, first_pass, [&](auto load) {
    const bfloat16x8_t v = load(x);
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) acc[i] = vbfmmlaq_f32(acc[i], load(w.row(i)), v);
  });
#pragma GCC unroll 8
  for (int i = 0; i < NR; ++i) put(vgetq_lane_f32(acc[i], 0) + vgetq_lane_f32(acc[i], 3), out + i, accumulate);
}

template <int NR, int MR>
inline void tile(Rows w, Rows x, int64_t k, float* out, int64_t out_stride, bool accumulate, bool first_pass) {
  if constexpr (NR > 1 && MR > 1)
    pairs_tile<NR, MR>(w, x, k, out, out_stride, accumulate, first_pass);
  else
    for (int j = 0; j < MR; ++j) row_tile<NR>(w, x.row(j), k, out + j * out_stride, accumulate, first_pass && j == 0);
}

// All weights with MR rows of x. A register tile has 16 accumulators at most.
template <int MR, int NR = MR == 8 ? 4 : 8>
void all_weights(Rows w, int64_t n, Rows x, int64_t k, float* out, int64_t out_stride, bool accumulate, bool first_pass) {
  int64_t i = 0;
  for (; i + NR <= n; i += NR) tile<NR, MR>(w.from(i), x, k, out + i, out_stride, accumulate, first_pass);
  if constexpr (NR > 1)
    if (i < n) all_weights<MR, NR / 2>(w.from(i), n - i, x, k, out + i, out_stride, accumulate, first_pass);
}

template <int MR = 8>
void all_rows(Rows w, int64_t n, Rows x, int64_t m, int64_t k, float* out, int64_t out_stride, bool accumulate, bool first_pass) {
  int64_t j = 0;
  for (; j + MR <= m; j += MR)
    all_weights<MR>(w, n, x.from(j), k, out + j * out_stride, out_stride, accumulate, first_pass && j == 0);
  if constexpr (MR > 1)
    if (j < m) all_rows<MR / 2>(w, n, x.from(j), m - j, k, out + j * out_stride, out_stride, accumulate, first_pass && j == 0);
}

void gemm_bf16(const void* w, int64_t w_stride, int64_t n, const void* x, int64_t x_stride, int64_t m, int64_t k, float* out,
               int64_t out_stride, bool accumulate, const void*) {
  all_rows({static_cast<const char*>(w), w_stride}, n, {static_cast<const char*>(x), x_stride}, m, k, out, out_stride, accumulate,
           true);
}

}  // namespace

namespace lynx_rt::cpu {
const Kernels kNeonBf16Kernels = make_kernels(Isa::kNeonBf16, gemm_bf16);
}
