#include "checkpoint/dummy.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "checkpoint/weight_pieces.h"

namespace lynx_rt {

namespace {

constexpr int64_t kStart = 64;  // bytes between the starts of tensors that share a block

uint32_t bits_of(float v, DType dtype) {
  if (dtype == DType::kBF16) return f32_to_bf16(v);
  if (dtype == DType::kF16) return f32_to_f16(v);
  return std::bit_cast<uint32_t>(v);
}

// Writes bytes [start, start + bytes) of an endless sequence of values.
void fill(uint8_t* to, int64_t start, int64_t bytes, DType dtype) {
  // A few values are repeated, because drawing each one anew would take a minute for a large model. Their number is prime, so
  // that no two rows of a usual length are alike.
  constexpr int64_t kPeriod = 65521;
  const int64_t size = dtype_size(dtype);
  std::vector<uint8_t> period(size_t(kPeriod * size));
  uint32_t state = 0x9e3779b9u;
  for (int64_t i = 0; i < kPeriod; ++i) {
    state = state * 1664525u + 1013904223u;  // Numerical Recipes, "quick and dirty" generators
    const float uniform = float(state >> 8) * 0x1p-24f - 0.5f;
    const uint32_t bits = bits_of(uniform * 0.0692820323f, dtype);  // 0.02 * sqrt(12)
    std::memcpy(period.data() + i * size, &bits, size_t(size));
  }
  for (int64_t done = 0; done < bytes;) {
    const int64_t from = (start + done) % int64_t(period.size()), count = std::min(int64_t(period.size()) - from, bytes - done);
    std::memcpy(to + done, period.data() + from, size_t(count));
    done += count;
  }
}

// Weights in blocks and the memory that they need.
class DummyBlocks {
 public:
  void add(WeightView* target, const BlockRows& form) { targets_.push_back({target, form}); }

  // Fills the targets. Shared: codes begin at different places of one block, scales and zero points are the same.
  void make(bool shared, OwnedWeights& owned) {
    int64_t bytes[3] = {};  // codes, scales, zero points
    const auto place = [&](int part, int64_t size) {
      const int64_t at = shared ? 0 : bytes[part];
      bytes[part] = shared ? std::max(bytes[part], size) : at + round_up(size, kStart);
      return at;
    };
    std::vector<std::array<int64_t, 3>> at;
    for (const auto& [target, form] : targets_) {
      const int64_t sizes[] = {form.row_bytes, form.scale_row_bytes, form.zero_row_bytes};
      auto& offsets = at.emplace_back();
      for (int part = 0; part < 3; ++part)
        offsets[size_t(part)] =
            place(part, checked_mul(part == 1 ? scale_rows(*target, form) : target->rows, sizes[part], "weights"));
    }
    if (shared) bytes[0] += int64_t(targets_.size()) * kStart;
    for (int64_t& size : bytes) size = round_up(size, kStart);
    if (targets_.empty()) return;
    uint8_t* codes = owned.emplace_back(own_pages(bytes[0] + bytes[1] + bytes[2])).get();
    uint8_t *scales = codes + bytes[0], *zeros = scales + bytes[1];
    fill_codes(codes, bytes[0]);
    std::memset(zeros, kZero, size_t(bytes[2]));
    for (size_t i = 0; i < targets_.size(); ++i) {
      auto [target, rows] = targets_[i];
      uint8_t* of_target = scales + at[i][1];
      fill_scales(of_target, scale_rows(*target, rows) * rows.scale_row_bytes, rows);
      rows.data = codes + at[i][0] + (shared ? int64_t(i) * kStart : 0);
      rows.scales = of_target;
      rows.zeros = rows.zero_row_bytes ? zeros + at[i][2] : nullptr;
      *target = view_of_blocks(rows, target->rows, target->cols, target->dtype);
    }
  }

 private:
  static constexpr int kZero = 8;

  static int64_t scale_rows(const WeightView& target, const BlockRows& form) { return ceil_div(target.rows, form.scale_rows); }
  // A bit is missing in all codes, since FP8 is NaN where all bits but the sign are set.
  static void fill_codes(uint8_t* to, int64_t bytes) {
    constexpr int64_t kPeriod = 65521;  // prime, as in fill()
    uint32_t state = 0x9e3779b9u;
    for (int64_t i = 0; i < std::min(bytes, kPeriod); ++i) to[i] = uint8_t((state = state * 1664525u + 1013904223u) >> 24) & 0xdf;
    for (int64_t done = kPeriod; done < bytes; done += kPeriod)
      std::memcpy(to + done, to, size_t(std::min(kPeriod, bytes - done)));
  }
  // The root mean square of random codes is about 4.6 (int4), 70 (int8), 2.9 (e2m1) or 9.5 (FP8).
  static void fill_scales(uint8_t* to, int64_t bytes, const BlockRows& rows) {
    if (rows.scale_type == ScaleType::kExponent) {
      std::memset(to, 127 - 7, size_t(bytes));
      return;
    }
    const float size = rows.code == BlockCode::kGroupedInt4 ? 4.6f : rows.code == BlockCode::kGroupedFp8 ? 9.5f : 70.0f;
    const float scale = 0.02f / size;
    const DType dtype = rows.scale_type == ScaleType::kF32    ? DType::kF32
                        : rows.scale_type == ScaleType::kBF16 ? DType::kBF16
                                                              : DType::kF16;
    const uint32_t bits = bits_of(scale, dtype);
    for (int64_t i = 0; i < bytes; i += dtype_size(dtype)) std::memcpy(to + i, &bits, size_t(dtype_size(dtype)));
  }

  struct Target {
    WeightView* target;
    BlockRows form;
  };
  std::vector<Target> targets_;
};

}  // namespace

std::optional<BlockRows> dummy_form(const QuantizedFormat& f, int64_t cols, DType dtype) {
  constexpr int64_t kColumns = 32;
  BlockRows r;
  r.group = f.block_cols ? std::min(f.block_cols, cols) : cols;
  if (f.encoding != Encoding::kFloat8 && (cols % kColumns != 0 || r.group % kColumns != 0)) return std::nullopt;
  r.scale_type = dtype == DType::kF32 ? ScaleType::kF32 : dtype == DType::kBF16 ? ScaleType::kBF16 : ScaleType::kF16;
  switch (f.encoding) {
    case Encoding::kFloat8:
      r.code = BlockCode::kGroupedFp8;
      r.scale_rows = f.block_rows ? f.block_rows : INT32_MAX;
      break;
    case Encoding::kInt8:
      if (!f.symmetric) return std::nullopt;
      r.code = BlockCode::kGroupedInt8;
      break;
    case Encoding::kMxfp4Packed:
    case Encoding::kMxfp4Blocks:
      r.code = BlockCode::kGroupedMxfp4;
      r.scale_type = ScaleType::kExponent;
      break;
    case Encoding::kGptq:
    case Encoding::kAwq: r.scale_type = ScaleType::kF16; [[fallthrough]];
    case Encoding::kPackedInt: r.code = f.bits == 4 ? BlockCode::kGroupedInt4 : BlockCode::kGroupedInt8; break;
  }
  const int64_t groups = ceil_div(cols, r.group);
  r.row_bytes = cols / block_size(r.code).columns * block_size(r.code).bytes;
  r.scale_row_bytes = groups * scale_size(r.scale_type);
  r.zero_row_bytes = !f.symmetric && r.code == BlockCode::kGroupedInt4 ? groups : 0;
  return r;
}

OwnedWeights dummy_weights(const std::vector<TensorSpec>& specs, DType dtype, bool shared, const DummyForm& form) {
  std::set<const WeightView*> quantized;
  DummyBlocks blocks;
  if (form)
    for (const TensorSpec& spec : specs)
      for (const WeightPiece& piece : checked_pieces(spec)) {
        *piece.target = target_view(piece, dtype);
        const auto rows = form(spec, *piece.target);
        if (rows && quantized.insert(piece.target).second) blocks.add(piece.target, *rows);
      }
  OwnedWeights owned;
  const auto bytes_of = [&](const TensorSpec& spec) {
    int64_t bytes = dtype_size(dtype);
    for (int64_t d : spec.shape) bytes = checked_mul(bytes, d, "dummy weights");
    for (const WeightPiece& piece : spec.pieces)
      if (quantized.count(piece.target)) bytes -= piece.target->rows * piece.target->cols * dtype_size(dtype);
    return bytes;
  };
  // Allocates memory and fills it with one value, or where there is none with those of a tensor at `start`.
  const auto make = [&](int64_t start, int64_t bytes, DType type, std::optional<float> value) {
    uint8_t* data = owned.emplace_back(own_pages(bytes)).get();
    if (!value) {
      fill(data, start, bytes, type);
      return data;
    }
    const uint32_t bits = bits_of(*value, type);
    for (int64_t i = 0; i < bytes; i += dtype_size(type)) std::memcpy(data + i, &bits, size_t(dtype_size(type)));
    return data;
  };
  int64_t largest = 0;
  for (const TensorSpec& spec : specs)
    if (spec.shape.size() > 1) largest = std::max(largest, bytes_of(spec));
  const uint8_t* block = nullptr;
  if (shared) block = make(0, largest + int64_t(specs.size()) * kStart, dtype, std::nullopt);
  int64_t start = 0;
  for (const TensorSpec& spec : specs) {
    const std::optional<float> value = spec.shape.size() < 2 ? std::optional(1.0f) : std::nullopt;
    const int64_t bytes = bytes_of(spec);
    const uint8_t* next = shared && !value ? block + start : bytes > 0 ? make(start, bytes, dtype, value) : nullptr;
    // The pieces follow one another here, however they would lie in a file.
    for (const WeightPiece& piece : checked_pieces(spec)) {
      if (quantized.count(piece.target)) continue;
      WeightView view = target_view(piece, dtype);
      if (piece.negative_exp) {  // a rate of decay: with 1, states would grow without bound
        view.data = make(start, view.bytes(), view.dtype, -1.0f);
      } else if (view.dtype == dtype) {
        view.data = next;
        next += view.bytes();
      } else {
        view.data = make(start, view.bytes(), view.dtype, value);
      }
      *piece.target = view;
    }
    start += kStart;
  }
  blocks.make(shared, owned);
  return owned;
}

}  // namespace lynx_rt
