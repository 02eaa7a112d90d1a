// Decodes 16 rows of weights in blocks (base/blocks.h) to a panel, in which four columns of eight rows are neighbours: an integer dot
// product gives a sum for each row, and no sums must be added up across a register.
//
// A class V has Eight, 4 bytes of each of 8 rows, and:
//   columns(p, stride, out)       the 16 bytes at p and at the next 7 rows, 4 bytes of each row in out[0] .. out[3]
//   low(e), high(e)               the lower and the upper half of each byte
//   pairs(e, first, second)       4 bytes are 8 codes, two to a byte, the lower half first: 4 codes of each row, then the next 4
//   bits(e, s, m)                 m & byte >> s
//   upper(e, b)                   e | b << 4
//   flip(e)                       each byte with its highest bit changed, where kSignedZero is 128
//   look_up(e, t)                 t[byte], of a table of 16 bytes
//   store(p, e)
//   bytes<i, Signed>(e)           byte i of each row, twice, as int16
//   twice(e), words(e, s, m)      of 32 bits: twice the lower 16 bits; m & word >> s
//   less(e, n)                    of 32 bits: word - n
//   halves_times(a, b, n)         of 16 bits: n times the lower half of a's word and the upper half of b's
//   half_words(e, i, to)          8 floats of the lower (0) or the upper (1) half of each row's word, half precision
//   half_floats(p, stride, to)    8 floats, of the half precision numbers at p and at the next 7 rows
//   powers(p, stride, to)         8 floats, power() of the bytes at p and at the next 7 rows
//   kSignedZero                   what is added to signed bytes: 128 where dot products take bytes without sign, else 0
#pragma once
#include "backend/cpu/kernels/blocks_decode_inl.h"

namespace {

constexpr int64_t kPanel = 16, kEight = 8;  // rows
constexpr int64_t kPanelColumns = 256, kPanelRuns = kPanelColumns / kRun, kPanelGroups = kPanelColumns / kGroup;
constexpr int64_t kQuads = kRun / 4;

// How runs are scaled: each by a scale, or whole groups by one, after steps or without.
enum class Scaling { kRuns, kGroups, kSteps };

// Columns of 16 rows. Zeros, steps and minimums are twice an int16 in each word: for the two halves of a run.
struct Panel {
  alignas(64) uint8_t codes[kPanelRuns][kQuads][kPanel][4];
  alignas(64) int32_t zeros[kPanelRuns][kPanel];  // times the steps
  alignas(64) int32_t steps[kPanelRuns][2][kPanel];
  alignas(64) int32_t minimums[kPanelRuns][kPanel];
  alignas(64) float scales[kPanelRuns][kPanel];
  alignas(64) float group_scales[kPanelGroups][kPanel];
  alignas(64) float group_minimums[kPanelGroups][kPanel];
};

// Codes of 8 bits have signs.
constexpr bool is_signed(BlockCode code) {
  return code == BlockCode::kQ8_0 || code == BlockCode::kGroupedInt8 || code == BlockCode::kIQ4_NL || code == BlockCode::kIQ4_XS;
}
// The zero of all codes of a panel; rows have their own where it is -1.
template <class V>
constexpr int panel_zero(BlockCode code) {
  if (code == BlockCode::kGroupedInt4) return -1;
  if (!is_signed(code)) return code == BlockCode::kQ6_K ? -1 : common_zero(code);
  return code == BlockCode::kIQ4_XS && V::kSignedZero ? -1 : V::kSignedZero;
}

inline int32_t twice(int v) { return int32_t(uint32_t(uint16_t(v)) * 0x10001u); }

// Eight rows of a panel, of which `first` is the first: where they lie, and where they go.
template <class V>
class EightRows {
  using Eight = typename V::Eight;

 public:
  EightRows(Panel& panel, int64_t first, const BlockRows& rows, int64_t row, int64_t stride)
      : panel_(panel), first_(first), rows_(rows), row_(row), step_(stride) {
    row_bytes_ = stride * rows.row_bytes;
    data_ = static_cast<const uint8_t*>(rows.data) + row * rows.row_bytes;
  }

  // Decodes columns [begin, begin + 32 runs).
  template <BlockCode Code>
  void decode(int64_t begin, int64_t runs, int64_t k) {
    constexpr lynx_rt::BlockSize kSize = lynx_rt::block_size(Code);
    const uint8_t* b = data_ + begin / kSize.columns * kSize.bytes;
    // Prefetches go to the next panel: to the share that its first or its last eight rows have of these columns' bytes.
    ahead_ = data_ + (kPanel - first_) * rows_.row_bytes + (2 * begin + (first_ ? runs * kRun : 0)) * kEight * row_bytes_ / k;
    if constexpr (is_grouped(Code)) {
      for (int64_t r = 0; r < runs; ++r, b += kSize.bytes) codes<Code>(b, r);
      scales<Code>(begin, runs);
    } else if constexpr (kSize.columns == kRun) {
      for (int64_t r = 0; r < runs; ++r, b += kSize.bytes) {
        constexpr bool kExponent = Code == BlockCode::kMxfp4;
        if constexpr (kExponent)
          V::powers(b, row_bytes_, panel_.scales[r] + first_);
        else
          V::half_floats(b, row_bytes_, panel_.scales[r] + first_);
        codes<Code>(b + (kExponent ? 1 : 2), r);
      }
    } else if constexpr (has_minimums(Code)) {
      k_quants<Code>(b);
    } else if constexpr (Code == BlockCode::kQ6_K) {
      six(b);
    } else {
      iq4_xs(b);
    }
  }

 private:
  void store(int64_t r, int64_t q, Eight e) const { V::store(panel_.codes[r][q][first_], e); }

  // Eight rows' 16 bytes. As many of the next panel are prefetched in the order of memory, to the second-level cache: two panels and
  // what is decoded of one are more than a first-level cache holds.
  void columns(const uint8_t* p, Eight (&out)[4]) {
    __builtin_prefetch(ahead_, 0, 2);
    __builtin_prefetch(ahead_ + 64, 0, 2);
    ahead_ += 128;
    V::columns(p, row_bytes_, out);
  }

  template <BlockCode Code>
  static Eight value(Eight e) {
    constexpr bool kMx = is_mxfp4(Code);
    if constexpr (kMx || Code == BlockCode::kIQ4_NL || Code == BlockCode::kIQ4_XS) e = V::look_up(e, kMx ? kMxfp4 : kIq4);
    if constexpr (is_signed(Code) && V::kSignedZero) e = V::flip(e);
    return e;
  }

  // The codes of a run, of 16 bytes or 32.
  template <BlockCode Code>
  void codes(const uint8_t* b, int64_t r) {
    Eight e[4];
    if constexpr (Code == BlockCode::kQ8_0 || Code == BlockCode::kGroupedInt8) {
      for (int h = 0; h < 2; ++h) {
        columns(b + 16 * h, e);
        for (int q = 0; q < 4; ++q) store(r, 4 * h + q, value<Code>(e[q]));
      }
      return;
    }
    columns(b, e);
    for (int q = 0; q < 4; ++q)
      if constexpr (is_grouped(Code)) {
        Eight first, second;
        V::pairs(e[q], first, second);
        store(r, 2 * q, value<Code>(first));
        store(r, 2 * q + 1, value<Code>(second));
      } else {
        store(r, q, value<Code>(V::low(e[q])));
        store(r, 4 + q, value<Code>(V::high(e[q])));
      }
  }

  // Scales and zeros of grouped codes.
  template <BlockCode Code>
  void scales(int64_t begin, int64_t runs) const {
    const uint8_t* scales = static_cast<const uint8_t*>(rows_.scales) + row_ * rows_.scale_row_bytes;
    const int64_t stride = step_ * rows_.scale_row_bytes, group_runs = rows_.group / kRun;
    if constexpr (Code == BlockCode::kGroupedMxfp4) {
      for (int64_t r = 0; r < runs; ++r) V::powers(scales + begin / kRun + r, stride, panel_.scales[r] + first_);
      return;
    }
    const uint8_t* zeros = rows_.zeros ? static_cast<const uint8_t*>(rows_.zeros) + row_ * rows_.zero_row_bytes : nullptr;
    const bool whole = rows_.group % kGroup == 0;
    for (int64_t r = 0; r < runs; r += whole ? kGroupRuns : 1) {
      const int64_t g = (begin / kRun + r) / group_runs;
      float* to = (whole ? panel_.group_scales[r / kGroupRuns] : panel_.scales[r]) + first_;
      for (int64_t i = 0; i < kEight; ++i) to[i] = scale_at<V>(rows_.scale_type, scales + i * stride, g);
    }
    if constexpr (Code == BlockCode::kGroupedInt4)
      for (int64_t r = 0; r < runs; ++r)
        for (int64_t i = 0; i < kEight; ++i) {
          const int64_t g = (begin / kRun + r) / group_runs;
          panel_.zeros[r][first_ + i] = twice(zeros ? zeros[i * step_ * rows_.zero_row_bytes + g] : 8);
        }
  }

  // The words of 4 rows' scales or minimums: bytes of the runs 4 h .. 4 h + 3.
  void store_bytes(Eight e, int h, int32_t* to, int64_t distance) const {
    const Eight words[4] = {V::template bytes<0, false>(e), V::template bytes<1, false>(e), V::template bytes<2, false>(e),
                            V::template bytes<3, false>(e)};
    for (int i = 0; i < 4; ++i) V::store(to + (4 * h + i) * distance + first_, words[i]);
  }

  template <BlockCode Code>
  void k_quants(const uint8_t* b) {
    constexpr bool kFive = Code == BlockCode::kQ5_K;
    Eight head[4];  // d and dmin, then three words of scales and minimums
    columns(b, head);
    for (int64_t g = 0; g < kPanelGroups; ++g) {
      V::half_words(head[0], 0, panel_.group_scales[g] + first_);
      V::half_words(head[0], 1, panel_.group_minimums[g] + first_);
    }
    const Eight top = V::bits(head[3], 0, 15), top_min = V::bits(head[3], 4, 15);
    store_bytes(V::bits(head[1], 0, 63), 0, panel_.steps[0][0], 2 * kPanel);
    store_bytes(V::upper(top, V::bits(head[1], 6, 3)), 1, panel_.steps[0][0], 2 * kPanel);
    store_bytes(V::bits(head[2], 0, 63), 0, panel_.minimums[0], kPanel);
    store_bytes(V::upper(top_min, V::bits(head[2], 6, 3)), 1, panel_.minimums[0], kPanel);
    const uint8_t* q = b + (kFive ? 48 : 16);
    for (int h = 0; h < 2; ++h) {  // 16 bytes, a half of two runs
      Eight fifth[4];
      if constexpr (kFive) columns(b + 16 + 16 * h, fifth);
      for (int i = 0; i < 4; ++i) {
        Eight e[4];
        columns(q + 32 * i + 16 * h, e);
        for (int c = 0; c < 4; ++c) {
          Eight low = V::low(e[c]), high = V::high(e[c]);
          if constexpr (kFive) {
            low = V::upper(low, V::bits(fifth[c], 2 * i, 1));
            high = V::upper(high, V::bits(fifth[c], 2 * i + 1, 1));
          }
          store(2 * i, 4 * h + c, low);
          store(2 * i + 1, 4 * h + c, high);
        }
      }
    }
  }

  void six(const uint8_t* b) {
    V::half_floats(b + 208, row_bytes_, panel_.group_scales[0] + first_);
    V::half_floats(b + 208, row_bytes_, panel_.group_scales[1] + first_);
    Eight steps[4];
    columns(b + 192, steps);
    for (int i = 0; i < 4; ++i) {
      const Eight half[4] = {V::template bytes<0, true>(steps[i]), V::template bytes<1, true>(steps[i]),
                             V::template bytes<2, true>(steps[i]), V::template bytes<3, true>(steps[i])};
      for (int s = 0; s < 4; ++s) V::store(panel_.steps[2 * i + s / 2][s % 2] + first_, half[s]);
      for (int s = 0; s < 2; ++s) V::store(panel_.zeros[2 * i + s] + first_, V::halves_times(half[2 * s], half[2 * s + 1], 32));
    }
    for (int half = 0; half < 2; ++half)
      for (int h = 0; h < 2; ++h) {
        Eight upper[4];
        columns(b + 128 + 32 * half + 16 * h, upper);
        for (int i = 0; i < 2; ++i) {
          Eight e[4];
          columns(b + 64 * half + 32 * i + 16 * h, e);
          for (int c = 0; c < 4; ++c) {
            store(4 * half + i, 4 * h + c, V::upper(V::low(e[c]), V::bits(upper[c], 2 * i, 3)));
            store(4 * half + i + 2, 4 * h + c, V::upper(V::high(e[c]), V::bits(upper[c], 2 * i + 4, 3)));
          }
        }
      }
  }

  void iq4_xs(const uint8_t* b) {
    Eight head[4];  // d and the upper bits of scales, then their lower bits
    columns(b, head);
    for (int64_t g = 0; g < kPanelGroups; ++g) V::half_words(head[0], 0, panel_.group_scales[g] + first_);
    for (int r = 0; r < kPanelRuns; ++r) {
      const Eight low = V::words(head[1], 4 * r, 15), high = V::words(head[0], 16 + 2 * r, 3);
      const Eight step = V::twice(V::less(V::upper(low, high), 32));
      V::store(panel_.steps[r][0] + first_, step);
      if constexpr (V::kSignedZero) V::store(panel_.zeros[r] + first_, V::halves_times(step, step, V::kSignedZero));
      codes<BlockCode::kIQ4_XS>(b + 8 + 16 * r, r);
    }
  }

  Panel& panel_;
  int64_t first_;
  const BlockRows& rows_;
  int64_t row_, step_, row_bytes_;
  const uint8_t *data_, *ahead_ = nullptr;
};

}  // namespace
