#include "tiers/expert_record.h"

#include <cstring>

#include "base/error.h"
#include "base/panels.h"

namespace lynx_rt {

namespace {

constexpr int64_t kPartAlignment = 64;

// Bytes from row to row where rows have no gaps.
struct RowBytes {
  int64_t values = 0, scales = 0, zeros = 0;
};

RowBytes row_bytes(const WeightView& v) {
  if (v.format == QuantFormat::kPlain) return {v.cols * dtype_size(v.dtype), 0, 0};
  if (v.format == QuantFormat::kInt8 || v.format == QuantFormat::kInt4)
    return {Panels::row_bytes(v.cols, v.format == QuantFormat::kInt8 ? 8 : 4), 0, 0};
  if (v.format != QuantFormat::kBlocks)
    fail(ErrorCode::kUnsupported, "experts", "experts: weights of the format ", quant_format_name(v.format),
         " have no form in a file");
  const BlockSize size = block_size(v.blocks.code);
  const int64_t groups = v.blocks.scales ? ceil_div(v.cols, v.blocks.group) : 0;
  return {v.cols / size.columns * size.bytes, groups * scale_size(v.blocks.scale_type), v.blocks.zeros ? groups : 0};
}

// Rows in memory: those of panels are padded.
int64_t stored_rows(const WeightView& v) {
  return v.format == QuantFormat::kInt8 || v.format == QuantFormat::kInt4 ? round_up(v.rows, Panels::kPanel) : v.rows;
}

// Rows of scales: a record has one for each row where the file has one for all.
int64_t rows_of_scales(const WeightView& v) {
  const BlockRows& b = v.blocks;
  return b.scale_row_bytes == 0 ? v.rows : ceil_div(b.first_scale_row + v.rows, b.scale_rows);
}

void copy_rows(const void* from, int64_t from_stride, int64_t rows, int64_t bytes, uint8_t* to) {
  if (from_stride == bytes) {
    std::memcpy(to, from, size_t(rows * bytes));
    return;
  }
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * bytes, static_cast<const char*>(from) + r * from_stride, size_t(bytes));
}

}  // namespace

const uint8_t RecordLayout::kPresent = 0;

RecordLayout::RecordLayout(const ExpertWeights& expert) : shape_(expert) {
  const auto reserve = [&](int64_t bytes) {
    if (bytes == 0) return int64_t(-1);
    const int64_t at = round_up(bytes_, kPartAlignment);
    bytes_ = at + bytes;
    return at;
  };
  size_t i = 0;
  for (WeightView* v : shape_.views()) {
    const RowBytes row = row_bytes(*v);
    places_[i++] = {reserve(stored_rows(*v) * row.values), reserve(rows_of_scales(*v) * row.scales),
                    reserve(v->rows * row.zeros)};
    v->data = nullptr;
    v->quantized_row_bytes = v->format == QuantFormat::kPlain ? 0 : row.values;
    if (v->format != QuantFormat::kBlocks) continue;
    BlockRows& b = v->blocks;
    b.data = nullptr;
    if (b.scale_row_bytes == 0) b.scale_rows = 1, b.first_scale_row = 0;
    b.scales = b.scales ? &kPresent : nullptr, b.zeros = b.zeros ? &kPresent : nullptr;
    b.row_bytes = row.values, b.scale_row_bytes = row.scales, b.zero_row_bytes = row.zeros;
  }
  bytes_ = round_up(bytes_, kAlignment);
}

void RecordLayout::write(const ExpertWeights& expert, uint8_t* record) const {
  std::memset(record, 0, size_t(bytes_));
  const auto from = expert.views();
  for (size_t i = 0; i < from.size(); ++i) {
    const WeightView& v = *from[i];
    const Place& place = places_[i];
    if (place.values < 0) continue;
    const RowBytes row = row_bytes(v);
    copy_rows(v.data, v.row_bytes(), stored_rows(v), row.values, record + place.values);
    if (place.scales >= 0)
      copy_rows(v.blocks.scales, v.blocks.scale_row_bytes, rows_of_scales(v), row.scales, record + place.scales);
    if (place.zeros >= 0) copy_rows(v.blocks.zeros, v.blocks.zero_row_bytes, v.rows, row.zeros, record + place.zeros);
  }
}

ExpertWeights RecordLayout::view(const uint8_t* record) const {
  ExpertWeights expert = shape_;
  size_t i = 0;
  for (WeightView* v : expert.views()) {
    const Place& place = places_[i++];
    if (place.values < 0) continue;
    v->data = record + place.values;
    if (v->format != QuantFormat::kBlocks) continue;
    v->blocks.data = v->data;
    v->blocks.scales = place.scales < 0 ? nullptr : record + place.scales;
    v->blocks.zeros = place.zeros < 0 ? nullptr : record + place.zeros;
  }
  return expert;
}

}  // namespace lynx_rt
