// The inner loops of the CPU backend, compiled once per instruction set and chosen at run time.
// The kernels are single-threaded, allocate nothing, and reduce every output in one fixed order that depends on K alone.
#pragma once
#include <cstdint>

#include "backend/draw_kernels.h"
#include "base/blocks.h"
#include "base/cpu_features.h"
#include "base/types.h"

namespace lynx_rt::cpu {

// out[j * out_stride + i] (+)= dot(w[i], x[j]) for i < n, j < m, over k elements.
// w: n rows of k weights, w_stride bytes apart. x: m rows of k elements, x_stride bytes each, in the kernel's own form.
// next: what the thread will probably read after these weights, which a kernel may fetch meanwhile; null where nothing is known.
using GemmFn = void (*)(const void* w, int64_t w_stride, int64_t n, const void* x, int64_t x_stride, int64_t m, int64_t k,
                        float* out, int64_t out_stride, bool accumulate, const void* next);

// Packs columns [begin, begin + n) of m float32 rows into the tile form of bf16 rows. x points at their first column, begin is a
// multiple of 32, and the last 32 columns are completed with zeros.
// Tile form: rows 16 b .. 16 b + 15 are block b, at x + 16 b * x_stride. A block of r rows (16, or the rest) is [k / 2][r][2], pair of
// columns after pair of columns, with k padded with zeros to a multiple of 32. A block takes as much memory as its rows one by one:
// x_stride = 2 * round_up(k, 32).
using PackTilesFn = void (*)(const float* const* x, int64_t m, int64_t begin, int64_t n, void* out, int64_t x_stride);

// acc[j][i] += sum_t p[j][2 t] * v[t][i][0] + p[j][2 t + 1] * v[t][i][1] for j < m, i < 32, t < pairs ascending; v is bf16
// [pairs, 32, 2]; a row of p is pairs of bf16, whose address is that of a float for want of a common type.
using PairsFn = void (*)(const void* v, int64_t pairs, const float* const* p, int64_t m, float* const* acc);

// A GemmFn without adding, for rows of w in pieces anywhere in memory: n[i] <= 16 rows at w[i], w_stride bytes apart. The results of
// the pieces follow each other.
using GemmPiecesFn = void (*)(const void* const* w, const int32_t* n, int64_t pieces, int64_t w_stride, const void* x,
                              int64_t x_stride, int64_t m, int64_t k, float* out, int64_t out_stride);

// A causal convolution of columns, each by itself. weights[j * stride + c] belongs to column c and the j-th oldest of `width` inputs.
struct ConvFilter {
  const float* weights;
  int64_t stride, width;
  const float* bias;  // [columns] or null
  bool silu;          // the result passes silu()
};

// Rows of one sequence and value head in a recurrence. q and k have dk columns, v and out dv; beta is one number of a row, and so is
// decay, which has dk in delta_rule_by_channel().
struct DeltaRows {
  const float *q, *k, *v, *beta, *decay;
  int64_t stride;  // floats between rows of all five
  float* out;
  int64_t out_stride;
};

// The parts of the ops that keep a state: gated_delta_rule(), mamba2(), short_conv().
struct DeltaKernels {
  // x[t][c] = f(bias[c] + sum_j w[j][c] * input[t - width + 1 + j][c]) in place for t < rows, c < n. Inputs before row 0 are the
  // `width` - 1 rows of `past`, oldest first, which become those before the next row.
  void (*short_conv)(float* x, int64_t stride, int64_t rows, int64_t n, const ConvFilter& filter, float* past,
                     int64_t past_stride);
  void (*unit_norm)(float* x, int64_t n, float eps, float scale);  // x *= scale / sqrt(sum of squares + eps)
  // Runs columns [begin, begin + n) of a state [dk, dv] through the rows: state = decay * state; u = beta * (v - state^T k);
  // state += k u^T; out = state^T q. Columns do not depend on each other. n <= kDeltaColumns; `scratch` has dk * kDeltaColumns floats.
  void (*delta_rule)(const DeltaRows& rows, int64_t num_rows, int64_t dk, int64_t dv, int64_t begin, int64_t n, float* state,
                     float* scratch);
  // As delta_rule(), with a decay of its own for each of the dk rows of the state.
  void (*delta_rule_by_channel)(const DeltaRows& rows, int64_t num_rows, int64_t dk, int64_t dv, int64_t begin, int64_t n,
                                float* state, float* scratch);
  // As delta_rule(), with u = beta * v: Mamba2's recurrence, where C, B, x and dt are q, k, v and beta.
  void (*selective_scan)(const DeltaRows& rows, int64_t num_rows, int64_t dk, int64_t dv, int64_t begin, int64_t n, float* state,
                         float* scratch);
  // delta_rule() of one row and all columns, with the same bits; `scratch` has delta_row_scratch(dv) floats.
  void (*delta_row)(const DeltaRows& row, int64_t dk, int64_t dv, float* state, float* scratch);
};
constexpr int64_t kDeltaColumns = 32;
constexpr int64_t delta_row_scratch(int64_t dv) { return 2 * (dv + 16); }

struct Kernels {
  Isa isa;
  // Products with x of float32, indexed by the weights' DType. A row of x is in blocks of `block_columns`, the last one completed with
  // zeros; for bf16 weights split_pairs() has put the even columns of each block before the odd ones.
  GemmFn gemm_f32[3];
  int64_t block_columns;                     // a power of two, at most 32
  void (*split_pairs)(float* x, int64_t n);  // in place; n is a multiple of block_columns
  void (*join_pairs)(float* x, int64_t n);   // undoes split_pairs()
  GemmFn gemm_bf16;  // x: rows of bf16, weights bf16; null where the instruction set has no bf16 dot product

  // acc[j][i] += sum_t p[j][t] * v[t][i] for j < m, i < d, t ascending; v is `tokens` rows of d values (dtype), `stride` values apart.
  // A row of acc is in blocks like a row of x, with split pairs where v is bf16; what completes the last block stays as it is.
  void (*weighted_sum)(const void* v, int64_t stride, DType dtype, int64_t tokens, const float* const* p, int64_t m, int64_t d,
                       float* const* acc);
  void (*to_f32)(const void* in, DType dtype, int64_t n, float* out);
  void (*from_f32)(const float* in, int64_t n, DType dtype, void* out);                                // round to nearest even
  void (*round_to)(const float* in, int64_t n, DType dtype, float* out);                               // from_f32 then to_f32
  void (*rmsnorm)(const float* x, const void* weight, DType dtype, int64_t n, float eps, float* out);  // weight null: all 1
  void (*layernorm)(const float* x, const void* weight, DType dtype, const void* bias, DType bias_dtype, int64_t n, float eps,
                    float* out);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);       // out = silu(gate) * up
  void (*gelu_tanh_mul)(const float* gate, const float* up, int64_t n, float* out);  // out = gelu(gate) * up, by tanh; up null: 1
  void (*gelu)(float* x, int64_t n);                                                 // x = gelu(x) in place, by erf
  void (*sigmoid_mul)(const float* gate, int64_t n, float* x);                       // x *= sigmoid(gate)
  // out = g * sigmoid(alpha * g) * (u + 1), g = min(gate, limit), u = clamp(up, -limit, limit)
  void (*clamped_swiglu)(const float* gate, const float* up, int64_t n, float alpha, float limit, float* out);
  // x = exp(scale * (x - max)) in place; state = {max, sum of the exponentials}; n > 0.
  void (*exponentials)(float* x, int64_t n, float scale, float* state);
  void (*soft_cap)(float* x, int64_t n, float cap);  // x = cap * tanh(x / cap) in place
  // Adds `part`, the weighted sums over other keys, to `state`; both are {sums [d], max, sum of the exponentials}.
  void (*merge)(const float* part, int64_t d, float scale, float* state);
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);              // rotates (x[i], x[i + half])
  void (*rope_interleaved)(float* x, const float* cos, const float* sin, int64_t half);  // rotates (x[2 i], x[2 i + 1])
  void (*axpy)(float a, const float* x, int64_t n, float* y);                            // y += a * x
  DeltaKernels delta;
  double (*read_sum)(const void* p, int64_t bytes);  // reads all bytes, to measure bandwidth
  DrawKernels draw;

  PairsFn weighted_pairs = nullptr;  // null where the instruction set has no bf16 dot product
  GemmFn gemm_bf16_tiles = nullptr;  // x: bf16 in tile form, weights bf16; null where the instruction set has no tiles
  PackTilesFn pack_bf16_tiles = nullptr;
  GemmPiecesFn gemm_bf16_pieces = nullptr;
};

const Kernels& kernels_for(Isa isa);

// Products with quantised weights (quant.h). Rows of x and weights are packed. w_stride is WeightView::row_bytes(), of which a panel
// takes 16; w is the first row of a panel. k is not padded.
struct QuantKernels {
  GemmFn gemm_int8, gemm_int4;
  PackTilesFn pack;  // columns [begin, begin + n) of m float32 rows; begin is a multiple of Quant::kGroup
  // Makes a group of a panel from its values [16, Quant::kGroup], row-major.
  void (*quantize_int8)(const float* values, char* group);
  void (*quantize_int4)(const float* values, char* group);
};

const QuantKernels& quant_kernels_for(Isa isa);

// out[j * out_stride + i] (+)= dot(row i of w, x[j]) for i < n, j < m.
using BlockGemmFn = void (*)(const BlockRows& w, int64_t n, const void* x, int64_t x_stride, int64_t m, int64_t k, float* out,
                             int64_t out_stride, bool accumulate);

// Products with weights in blocks (blocks.h), for rows of x that pack() has packed, and the values of weights. k is a multiple of the
// columns of a block.
struct BlockKernels {
  BlockGemmFn gemm;  // not for kGroupedFp8, whose weights are decoded
  PackTilesFn pack;  // columns [begin, begin + n) of m float32 rows; begin is a multiple of Blocks::kGroup
  void (*values)(const BlockRows& w, int64_t row, int64_t k, float* out);
  // Decodes n rows of w to `dtype`, rounded to nearest even, out_stride bytes apart.
  void (*decode)(const BlockRows& w, int64_t n, int64_t k, DType dtype, void* out, int64_t out_stride);
};

const BlockKernels& block_kernels_for(Isa isa);

extern const Kernels kScalarKernels;
extern const QuantKernels kScalarQuantKernels;
extern const BlockKernels kScalarBlockKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const QuantKernels kAvx2QuantKernels;
extern const BlockKernels kAvx2BlockKernels;
extern const BlockKernels kAvxVnniBlockKernels;
extern const BlockKernels kAvx512VnniBlockKernels;
extern const QuantKernels kAvxVnniQuantKernels;
extern const QuantKernels kAvx512VnniQuantKernels;
extern const QuantKernels kAmxInt8QuantKernels;
void amx_gemm_bf16_tiles(const void* w, int64_t w_stride, int64_t n, const void* x, int64_t x_stride, int64_t m, int64_t k,
                         float* out, int64_t out_stride, bool accumulate, const void* next);
void amx_gemm_bf16_pieces(const void* const* w, const int32_t* n, int64_t pieces, int64_t w_stride, const void* x,
                          int64_t x_stride, int64_t m, int64_t k, float* out, int64_t out_stride);
void amx_pack_bf16_tiles(const float* const* x, int64_t m, int64_t begin, int64_t n, void* out, int64_t x_stride);
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const Kernels kNeonBf16Kernels;
extern const QuantKernels kNeonQuantKernels;
extern const QuantKernels kNeonDotprodQuantKernels;
extern const BlockKernels kNeonBlockKernels;
extern const BlockKernels kNeonDotprodBlockKernels;
extern const QuantKernels kNeonI8mmQuantKernels;
#endif

}  // namespace lynx_rt::cpu
