// Products of decoded panels with rows of x, over the registers of an instruction set of x86.
//
// A class Dot multiplies bytes without sign with bytes that have one:
//   Registers              Ymm, or a class like it
//   kWide                  sums are of 32 bits; else two products are summed in 16 bits, and sum() makes words of them
//   kMost                  rows of x of a pass at most
//   add(sum, u, q)         adds products of bytes to a sum
//   add_signed(sum, c, q)  the same of bytes that both have signs, where kWide is false
//   sum<kSteps>(part, step)  words of the sums of a run's part, times the steps
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/blocks_gemm_inl.h"

namespace {

// Registers of 256 bits: a panel's rows are in two.
struct Ymm {
  using Words = __m256i;
  using Floats = __m256;
  static constexpr int kRows = 8;

  static Words zero() { return _mm256_setzero_si256(); }
  static Words load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Words all(int32_t v) { return _mm256_set1_epi32(v); }
  static Words all16(int v) { return _mm256_set1_epi16(short(v)); }
  static Words plus(Words a, Words b) { return _mm256_add_epi32(a, b); }
  static Words minus(Words a, Words b) { return _mm256_sub_epi32(a, b); }
  static Words madd16(Words a, Words b) { return _mm256_madd_epi16(a, b); }
  static Words times_high(Words a, Words step) { return _mm256_mullo_epi32(a, _mm256_srai_epi32(step, 16)); }
  static Floats floats(Words v) { return _mm256_cvtepi32_ps(v); }
  static Floats zero_floats() { return _mm256_setzero_ps(); }
  static Floats load_floats(const float* p) { return _mm256_load_ps(p); }
  static void store_floats(float* p, Floats v) { _mm256_store_ps(p, v); }
  static Floats all_floats(float v) { return _mm256_set1_ps(v); }
  static Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats fmadd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats fnmadd(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
  // A value that gcc must have before what follows: it would compute products first, and has too few registers for them.
  static Words now(Words v) {
    asm("" : "+x"(v));
    return v;
  }
};

// The part of a Dot that instructions with sums of 32 bits share.
template <class R>
struct WideDot {
  using Registers = R;
  static constexpr bool kWide = true;
  template <bool kSteps>
  static typename R::Words sum(typename R::Words part, typename R::Words step) {
    return kSteps ? R::times_high(part, step) : part;
  }
};

// The base of a class V of blocks_gemm_inl.h, which decodes the panels.
template <class V, class Dot>
struct BlockProducts {
  using Reg = typename Dot::Registers;
  using Words = typename Reg::Words;
  using Floats = typename Reg::Floats;
  static constexpr int kRows = Reg::kRows, kParts = int(kPanel) / kRows;

  // Quads whose products are summed before sum(): in 16 bits up to 2 * 127 * the largest code each.
  template <BlockCode Code>
  static constexpr int quads() {
    if (Dot::kWide) return Code == BlockCode::kQ6_K ? 4 : 8;
    return is_signed(Code) ? 1 : Code == BlockCode::kQ6_K ? 2 : Code == BlockCode::kQ5_K || is_mxfp4(Code) ? 4 : 8;
  }
  template <BlockCode Code>
  static constexpr int most() {
    return !Dot::kWide && is_signed(Code) ? 4 : Dot::kMost;
  }

  // Twice the sums of q of both halves of a run, for Reg::madd16().
  static Words sums_of(const BlockX& x, int64_t j, int64_t r) {
    int32_t both;
    std::memcpy(&both, x.sums(j, r), 4);
    return Reg::all(both);
  }

  // sum[h][j] += products of run r, multiplied by the steps.
  template <BlockCode Code, Scaling kScaling, int R>
  [[gnu::always_inline]] static inline void add_run(const Panel& panel, int64_t r, const BlockX& x, int64_t x_run,
                                                    Words (&sums)[kParts][R]) {
    constexpr int kQuadsSummed = quads<Code>();
    constexpr bool kAbsolute = is_signed(Code) && !Dot::kWide;
    const char* bytes = x.bytes(0, x_run);
    for (int first = 0; first < kQuads; first += kQuadsSummed) {
      Words part[kParts][R];
      for (int h = 0; h < kParts; ++h)
        for (int j = 0; j < R; ++j) part[h][j] = Reg::zero();
#pragma GCC unroll 8
      for (int q = first; q < first + kQuadsSummed; ++q) {
        Words c[kParts];
        for (int h = 0; h < kParts; ++h) c[h] = Reg::load(panel.codes[r][q][h * kRows]);
        for (int j = 0; j < R; ++j) {
          int32_t quad;
          std::memcpy(&quad, bytes + j * x.stride + 4 * q, 4);
          const Words four = Reg::all(quad);
          for (int h = 0; h < kParts; ++h)
            if constexpr (kAbsolute)
              part[h][j] = Dot::add_signed(part[h][j], c[h], four);
            else
              part[h][j] = Reg::now(Dot::add(part[h][j], c[h], four));
        }
      }
      for (int h = 0; h < kParts; ++h) {
        const Words step = kScaling == Scaling::kSteps
                               ? Reg::load(panel.steps[r][Code == BlockCode::kQ6_K ? first / 4 : 0] + h * kRows)
                               : Reg::all16(1);
        for (int j = 0; j < R; ++j)
          sums[h][j] = Reg::now(Reg::plus(sums[h][j], Dot::template sum<kScaling == Scaling::kSteps>(part[h][j], step)));
      }
    }
  }

  // The part that zeros have in the sums of run r.
  template <BlockCode Code>
  static Words zeros(const Panel& panel, int64_t r, int h, Words sums) {
    constexpr int kZero = panel_zero<V>(Code);
    return Reg::madd16(kZero < 0 ? Reg::load(panel.zeros[r] + h * kRows) : Reg::all16(kZero), sums);
  }

  template <BlockCode Code, Scaling kScaling, int R>
  static void add(const Panel& panel, int64_t runs, const BlockX& x, int64_t first, PanelSums* out) {
    constexpr bool kZero = panel_zero<V>(Code) != 0;
    for (int64_t begin = 0; begin < runs; begin += kGroupRuns) {
      const int64_t end = begin + kGroupRuns < runs ? begin + kGroupRuns : runs, g = begin / kGroupRuns;
      Words sums[kParts][R];
      Floats values[kParts][R];
      for (int h = 0; h < kParts; ++h)
        for (int j = 0; j < R; ++j) sums[h][j] = Reg::zero(), values[h][j] = Reg::zero_floats();
      for (int64_t r = begin; r < end; ++r) {
        if constexpr (kScaling == Scaling::kRuns)
          for (int h = 0; h < kParts; ++h)
            for (int j = 0; j < R; ++j) sums[h][j] = Reg::zero();
        add_run<Code, kScaling, R>(panel, r, x, first + r, sums);
        if constexpr (kScaling == Scaling::kRuns)
          for (int h = 0; h < kParts; ++h) {
            const Floats scale = Reg::load_floats(panel.scales[r] + h * kRows);
            for (int j = 0; j < R; ++j) {
              Words sum = sums[h][j];
              if (kZero) sum = Reg::minus(sum, zeros<Code>(panel, r, h, sums_of(x, j, first + r)));
              values[h][j] = Reg::fmadd(Reg::floats(sum), scale, values[h][j]);
            }
          }
      }
      for (int j = 0; j < R; ++j) {
        Words of_x[kGroupRuns];
        if constexpr (kScaling != Scaling::kRuns && (kZero || has_minimums(Code)))
          for (int64_t r = begin; r < end; ++r) of_x[r - begin] = sums_of(x, j, first + r);
        const Floats scale = Reg::all_floats(x.scale(j, first / kGroupRuns + g));
        for (int h = 0; h < kParts; ++h) {
          Floats value = values[h][j];
          if constexpr (kScaling != Scaling::kRuns) {
            Words sum = sums[h][j];
            if constexpr (kZero)
              for (int64_t r = begin; r < end; ++r) sum = Reg::minus(sum, zeros<Code>(panel, r, h, of_x[r - begin]));
            value = Reg::times(Reg::floats(sum), Reg::load_floats(panel.group_scales[g] + h * kRows));
            if constexpr (has_minimums(Code)) {
              Words low = Reg::zero();
              for (int64_t r = begin; r < end; ++r)
                low = Reg::plus(low, Reg::madd16(Reg::load(panel.minimums[r] + h * kRows), of_x[r - begin]));
              value = Reg::fnmadd(Reg::floats(low), Reg::load_floats(panel.group_minimums[g] + h * kRows), value);
            }
          }
          float* to = out[j] + h * kRows;
          Reg::store_floats(to, Reg::fmadd(value, scale, Reg::load_floats(to)));
        }
      }
    }
  }
};

}  // namespace
