#include "tiers/expert_file.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <system_error>

#include "base/crc32c.h"
#include "base/error.h"
#include "base/memory.h"

namespace lynx_rt {

namespace {

constexpr int64_t kMaxIndex = 256 << 20;        // bytes: 16 million experts
constexpr int64_t kMaxSide = int64_t(1) << 24;  // rows and columns of a matrix: their product and its bytes fit int64

// Reads the index from its begin on. Every failure names the file, the place and what was found.
class IndexReader {
 public:
  IndexReader(const std::string& path, std::span<const uint8_t> bytes) : path_(path), bytes_(bytes) {}

  template <class... Parts>
  [[noreturn]] void reject(const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, path_, path_, ": ", parts...);
  }

  template <class T>
  T number(const std::string& what) {
    if (left() < int64_t(sizeof(T))) reject(what, ": expected ", sizeof(T), " bytes, but the index has ", left(), " more");
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += int64_t(sizeof value);
    return value;
  }

  // Returns a count of things of at least `bytes` bytes each, which the rest of the index has room for.
  int64_t count(int64_t bytes, const std::string& what) {
    const auto value = number<int64_t>(what);
    if (value < 0 || value > left() / bytes)
      reject(what, ": expected a number of at most ", left() / bytes, ", for which the index has room, got ", value);
    return value;
  }

  std::string text(const std::string& what) {
    const int64_t length = count(1, what);
    const std::string value(reinterpret_cast<const char*>(bytes_.data() + at_), size_t(length));
    at_ += length;
    return value;
  }

  int64_t at_most(int64_t most, int64_t least, int64_t value, const std::string& what) const {
    if (value < least || value > most) reject(what, ": expected ", least, "..", most, ", got ", value);
    return value;
  }

  void expect_end() const {
    if (left() != 0) reject("the index: expected its end, found ", left(), " more bytes");
  }

 private:
  int64_t left() const { return int64_t(bytes_.size()) - at_; }

  const std::string& path_;
  std::span<const uint8_t> bytes_;
  int64_t at_ = 0;
};

WeightView read_view(IndexReader& in, const std::string& what) {
  WeightView v;
  v.format = QuantFormat(in.at_most(int(QuantFormat::kBlocks), 0, in.number<uint8_t>(what), what + ", format"));
  v.dtype = DType(in.at_most(int(DType::kF16), 0, in.number<uint8_t>(what), what + ", dtype"));
  v.blocks.code = BlockCode(in.number<uint8_t>(what));
  v.blocks.scale_type = ScaleType(in.at_most(int(ScaleType::kExponent), 0, in.number<uint8_t>(what), what + ", type of scales"));
  const bool zeros = in.at_most(1, 0, in.number<uint8_t>(what), what + ", zeros") == 1;
  v.rows = in.at_most(kMaxSide, 0, in.number<int64_t>(what), what + ", rows");
  v.cols = in.at_most(kMaxSide, 0, in.number<int64_t>(what), what + ", columns");
  v.blocks.group = in.number<int64_t>(what);
  v.blocks.scale_rows = in.at_most(kMaxSide, 1, in.number<int64_t>(what), what + ", rows of a scale");
  v.blocks.first_scale_row = in.at_most(v.blocks.scale_rows - 1, 0, in.number<int64_t>(what), what + ", first row of a scale");
  v.blocks.product_dtype = DType(in.at_most(int(DType::kF16), 0, in.number<uint8_t>(what), what + ", type of products"));
  if (v.format != QuantFormat::kBlocks) {
    v.blocks = {};
    return v;
  }
  const int64_t columns = block_size(v.blocks.code).columns;
  if (columns == 0) in.reject(what, ", code: expected one of this version, got ", int(v.blocks.code));
  if (v.cols % columns != 0) in.reject(what, ", columns: expected a multiple of ", columns, ", got ", v.cols);
  const bool grouped = has_scale_tensor(v.blocks.code), fp8 = v.blocks.code == BlockCode::kGroupedFp8;
  if (grouped && (v.blocks.group <= 0 || (!fp8 && v.blocks.group % 32 != 0)))
    in.reject(what, ", columns of a group: expected a multiple of ", fp8 ? 1 : 32, ", got ", v.blocks.group);
  if (v.blocks.scale_rows > 1 && !fp8)
    in.reject(what, ", rows of a scale: expected 1 for the code ", block_code_name(v.blocks.code), ", got ", v.blocks.scale_rows);
  if (zeros && (!grouped || fp8)) in.reject(what, ", zeros: expected none for the code ", block_code_name(v.blocks.code));
  v.blocks.scales = grouped ? &RecordLayout::kPresent : nullptr;
  if (grouped) v.blocks.scale_row_bytes = ceil_div(v.cols, v.blocks.group) * scale_size(v.blocks.scale_type);
  v.blocks.zeros = zeros ? &RecordLayout::kPresent : nullptr;
  return v;
}

RecordLayout read_layout(IndexReader& in, int64_t number) {
  static constexpr const char* kNames[] = {"gate", "up", "down", "gate_bias", "up_bias", "down_bias"};
  ExpertWeights e;
  size_t i = 0;
  for (WeightView* v : e.views()) *v = read_view(in, str_cat("layout ", number, ", ", kNames[i++]));
  const int64_t width = e.gate.rows, hidden = e.gate.cols;
  const bool biased = e.gate_bias.rows > 0, gated = e.up.rows > 0, both = biased && gated;
  const int64_t shapes[][2] = {{width, hidden},      {gated * width, gated * hidden}, {hidden, width}, {biased, biased * width},
                               {both, both * width}, {biased, biased * hidden}};
  i = 0;
  for (const WeightView* v : e.views()) {
    const auto [rows, cols] = shapes[i];
    if (v->rows != rows || v->cols != cols || (i < 3 && i != 1 && rows * cols == 0))
      in.reject("layout ", number, ", ", kNames[i], ": expected the shape [", rows, ", ", cols,
                "] by gate, of at least one value, got [", v->rows, ", ", v->cols, "]");
    if (i >= 3 && v->format != QuantFormat::kPlain) in.reject("layout ", number, ", ", kNames[i], ": expected plain values");
    ++i;
  }
  return RecordLayout(e);
}

}  // namespace

ExpertFile::ExpertFile(const std::string& path, FileCalls& calls) : file_(std::make_shared<DirectFile>(path, calls)) {
  const int64_t size = file_->size();
  const auto reject = [&](const auto&... parts) { fail(ErrorCode::kCorruptFile, path, path, ": ", parts...); };
  // Reads past the page cache: a mapping would read the records beside the index into it.
  const auto read = [&](int64_t offset, int64_t bytes) {
    const auto release = [bytes](uint8_t* p) { release_pages(p, bytes); };
    std::unique_ptr<uint8_t, decltype(release)> memory(static_cast<uint8_t*>(allocate_pages(bytes, "expert_file")), release);
    if (const ReadResult result = file_->read(offset, bytes, memory.get()); !result.ok())
      reject("cannot read at byte ", result.offset, ": ", std::system_category().message(result.error));
    return memory;
  };
  if (size < kHeader) reject("expected an expert file, made by lynx-rt pack; found a file of ", size, " bytes");
  const auto begin = read(0, kHeader);
  if (std::memcmp(begin.get(), kMark, sizeof kMark) != 0)
    reject("expected an expert file of this version, made by lynx-rt pack; found another file");
  struct Header {
    int64_t size, index_offset, index_bytes;
    uint32_t index_crc, crc;
  } header;
  std::memcpy(&header, begin.get() + sizeof kMark, sizeof header);
  if (const uint32_t crc = crc32c(begin.get(), sizeof kMark + offsetof(Header, crc)); crc != header.crc)
    reject("the header: expected the CRC-32C ", header.crc, ", found ", crc);
  if (header.size != size) reject("expected ", header.size, " bytes, found ", size);
  if (header.index_offset < kHeader || header.index_offset % RecordLayout::kAlignment != 0 || header.index_offset > size ||
      header.index_bytes < 0 || header.index_bytes > kMaxIndex ||
      round_up(header.index_bytes, RecordLayout::kAlignment) > size - header.index_offset)
    reject("the index: expected at most ", kMaxIndex, " bytes inside of the file's ", size, ", found ", header.index_bytes,
           " at byte ", header.index_offset);
  const auto index = read(header.index_offset, round_up(header.index_bytes, RecordLayout::kAlignment));
  if (const uint32_t crc = crc32c(index.get(), header.index_bytes); crc != header.index_crc)
    reject("the index: expected the CRC-32C ", header.index_crc, ", found ", crc);

  IndexReader in(path, {index.get(), size_t(header.index_bytes)});
  source_.model_type = in.text("model type");
  source_.quantization = in.text("quantization");
  source_.fingerprint = in.text("fingerprint");
  constexpr int64_t kLayoutBytes = ExpertWeights::kNumViews * (6 + 5 * 8), kRecordBytes = 16;
  const int64_t num_layouts = in.count(kLayoutBytes, "number of layouts");
  for (int64_t i = 0; i < num_layouts; ++i) layouts_.push_back(read_layout(in, i));
  records_.resize(size_t(in.count(8, "number of layers")));
  for (size_t l = 0; l < records_.size(); ++l) {
    records_[l].resize(size_t(in.count(kRecordBytes, str_cat("layer ", l, ", number of experts"))));
    for (size_t e = 0; e < records_[l].size(); ++e) {
      const std::string what = str_cat("layer ", l, ", expert ", e);
      ExpertRecord& r = records_[l][e];
      r.offset = in.number<int64_t>(what);
      r.layout = int32_t(in.at_most(num_layouts - 1, 0, in.number<int32_t>(what), what + ", layout"));
      r.crc32c = in.number<uint32_t>(what);
      const int64_t bytes = layouts_[size_t(r.layout)].bytes();
      if (r.offset < kHeader || r.offset % RecordLayout::kAlignment != 0 || r.offset > header.index_offset ||
          bytes > header.index_offset - r.offset)
        in.reject(what, ": expected a record of ", bytes, " bytes from a multiple of ", RecordLayout::kAlignment,
                  " on, before byte ", header.index_offset, "; got byte ", r.offset);
      const ExpertWeights &one = layouts_[size_t(r.layout)].shape(), &first = layouts_[size_t(records_[l][0].layout)].shape();
      if (one.gate.rows != first.gate.rows || one.gate.cols != first.gate.cols || one.gate_bias.rows != first.gate_bias.rows ||
          one.up.rows != first.up.rows)
        in.reject(what, ": expected the shapes and biases of the layer's first expert");
    }
  }
  in.expect_end();
}

int64_t ExpertFile::max_record_bytes() const {
  int64_t most = 0;
  for (const RecordLayout& layout : layouts_) most = std::max(most, layout.bytes());
  return most;
}

}  // namespace lynx_rt
