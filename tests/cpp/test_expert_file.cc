// Tests csrc/tiers/expert_file.h: what is written is read back, for every format; damaged files are refused.
#include "tiers/expert_file.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "base/panels.h"
#include "check.h"
#include "faulty_calls.h"
#include "same_weights.h"
#include "temp_folder.h"

using namespace lynx_rt;

namespace {

constexpr int64_t kWidth = 40, kHidden = 64, kPage = 4096;

// Memory with random bytes for the matrices of experts.
struct Values {
  const void* take(int64_t bytes) {
    auto& bytes_of = kept.emplace_back(size_t(bytes));
    for (uint8_t& b : bytes_of) b = uint8_t(random());
    return bytes_of.data();
  }
  std::mt19937_64 random{11};
  std::vector<std::vector<uint8_t>> kept;
};

WeightView plain(Values& values, DType dtype, int64_t rows, int64_t cols) {
  return {values.take(rows * cols * dtype_size(dtype)), dtype, rows, cols};
}

WeightView panels(Values& values, QuantFormat format, int64_t rows, int64_t cols) {
  const int64_t row = Panels::row_bytes(cols, format == QuantFormat::kInt8 ? 8 : 4);
  return {values.take(round_up(rows, Panels::kPanel) * row), DType::kBF16, rows, cols, format, row};
}

// `gap`: bytes between rows, as those of a fused tensor have.
WeightView blocks(Values& values, BlockCode code, int64_t rows, int64_t cols, int64_t gap, bool zeros = false) {
  const BlockSize size = block_size(code);
  BlockRows b{.code = code, .row_bytes = cols / size.columns * size.bytes + gap};
  b.data = values.take(rows * b.row_bytes);
  if (has_scale_tensor(code)) {
    b.group = 32;
    b.scale_type = code == BlockCode::kGroupedMxfp4 ? ScaleType::kExponent : ScaleType::kF16;
    b.scale_row_bytes = cols / 32 * scale_size(b.scale_type) + gap;
    b.scales = values.take(rows * b.scale_row_bytes);
  }
  if (zeros) {
    b.zero_row_bytes = cols / 32 + gap;
    b.zeros = values.take(rows * b.zero_row_bytes);
  }
  return view_of_blocks(b, rows, cols, DType::kBF16);
}

// FP8 with a scale for 16 rows, of which the first is the fifth, and 24 columns.
WeightView fp8(Values& values, int64_t rows, int64_t cols) {
  BlockRows b{.code = BlockCode::kGroupedFp8, .row_bytes = cols, .group = 24, .scale_rows = 16, .first_scale_row = 5};
  b.scale_row_bytes = ceil_div(cols, b.group) * 4 + 4;
  b.data = values.take(rows * cols);
  b.scales = values.take(ceil_div(5 + rows, b.scale_rows) * b.scale_row_bytes);
  b.product_dtype = DType::kBF16;
  return view_of_blocks(b, rows, cols, DType::kBF16);
}

template <class Make>
ExpertWeights expert(Make make) {
  return {make(kWidth, kHidden), make(kWidth, kHidden), make(kHidden, kWidth), {}, {}, {}};
}

std::vector<ExpertWeights> all_formats(Values& v) {
  std::vector<ExpertWeights> out;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    out.push_back(expert([&](int64_t r, int64_t c) { return plain(v, dtype, r, c); }));
  for (const QuantFormat format : {QuantFormat::kInt8, QuantFormat::kInt4})
    out.push_back(expert([&](int64_t r, int64_t c) { return panels(v, format, r, c); }));
  out.push_back(expert([&](int64_t r, int64_t c) { return fp8(v, r, c); }));
  for (const int64_t gap : {0, 7})
    for (const bool zeros : {false, true})
      for (const BlockCode code : {BlockCode::kGroupedMxfp4, BlockCode::kGroupedInt4, BlockCode::kGroupedInt8, BlockCode::kQ8_0})
        if (!zeros || code == BlockCode::kGroupedInt4) {
          ExpertWeights e = expert([&](int64_t r, int64_t c) { return blocks(v, code, r, round_up(c, 32), gap, zeros); });
          e.gate = blocks(v, code, 64, kHidden, gap, zeros), e.up = blocks(v, code, 64, kHidden, gap, zeros);
          out.push_back(e);
        }
  return out;
}

const ExpertSource kSource = {"qwen3_moe", "int8", "0123456789abcdef"};

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void test_round_trip() {
  const TempFolder folder;
  Values values;
  std::vector<ExpertWeights> experts = all_formats(values);
  for (size_t i = 0; i < 2; ++i) {
    ExpertWeights biased = experts[i];
    biased.gate_bias = plain(values, DType::kBF16, 1, kWidth), biased.up_bias = plain(values, DType::kBF16, 1, kWidth);
    biased.down_bias = plain(values, DType::kF32, 1, kHidden);
    experts.push_back(biased);
  }
  const std::string path = folder.path("new/experts.bin");
  int64_t bytes = 0;
  for (const ExpertWeights& e : experts) bytes += 2 * RecordLayout(e).bytes();
  ExpertFileWriter writer(path, kSource, bytes);
  for (size_t l = 0; l < experts.size(); ++l)  // layer 2 l + 1 has two experts of one format, the layers between them none
    for (int e = 0; e < 2; ++e) writer.add(int64_t(2 * l + 1), experts[l]);
  CHECK(std::filesystem::exists(path + ".partial") && !std::filesystem::exists(path));
  const int64_t size = writer.finish(int64_t(2 * experts.size() + 3));
  CHECK(!std::filesystem::exists(path + ".partial"));
  CHECK_EQ(int64_t(std::filesystem::file_size(path)), size);

  const ExpertFile file(path);
  CHECK(file.source() == kSource);
  CHECK_EQ(file.num_layers(), int64_t(2 * experts.size() + 3));
  int64_t most = 0;
  for (size_t l = 0; l < experts.size(); ++l) {
    CHECK_EQ(file.num_experts(int64_t(2 * l)), 0);
    CHECK_EQ(file.num_experts(int64_t(2 * l + 1)), 2);
    const ExpertRecord& r = file.record(int64_t(2 * l + 1), 1);
    const RecordLayout& layout = file.layout(int64_t(2 * l + 1), 1);
    most = std::max(most, layout.bytes());
    CHECK_EQ(r.offset % kPage, 0);
    CHECK_EQ(layout.bytes() % kPage, 0);
    void* memory = std::aligned_alloc(size_t(kPage), size_t(layout.bytes()));
    CHECK(file.file()->read(r.offset, layout.bytes(), memory).ok());
    CHECK_EQ(crc32c(memory, layout.bytes()), r.crc32c);
    const ExpertWeights found = layout.view(static_cast<const uint8_t*>(memory));
    const auto got = found.views(), expected = std::as_const(experts[l]).views();
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK(same_weights(*expected[i], *got[i]));
      CHECK_EQ(reinterpret_cast<uintptr_t>(got[i]->data) % 64, 0u);
    }
    std::free(memory);
  }
  CHECK_EQ(file.max_record_bytes(), most);
}

std::string small_file(const TempFolder& folder) {
  Values values;
  const std::string path = folder.path("small.bin");
  ExpertFileWriter writer(path, kSource, 0);
  for (int64_t l = 0; l < 3; ++l)
    for (int e = 0; e < 3; ++e)
      writer.add(l, l == 1 ? expert([&](int64_t r, int64_t c) { return plain(values, DType::kBF16, r, c); })
                           : expert([&](int64_t r, int64_t c) { return panels(values, QuantFormat::kInt4, r, c); }));
  writer.finish(3);
  return bytes_of(path);
}

void test_writer_cleans_up() {
  const TempFolder folder;
  Values values;
  const ExpertWeights one = expert([&](int64_t r, int64_t c) { return plain(values, DType::kF16, r, c); });
  const std::string path = folder.path("e.bin");
  folder.write("e.bin.partial", std::string(100'000, 'x'));  // left by a process that was killed
  {
    ExpertFileWriter writer(path, kSource, 0);
    writer.add(0, one);
    CHECK_THROWS(ExpertFileWriter(path, kSource, 0), ErrorCode::kInvalidArgument, "output", {"another process writes it"});
    CHECK(std::filesystem::exists(path + ".partial"));
  }
  CHECK(std::filesystem::is_empty(folder.path()));
  CHECK_THROWS(ExpertFileWriter(path, kSource, int64_t(1) << 60), ErrorCode::kInvalidArgument, "output",
               {"the experts take 1152921504606846976 bytes", "are free"});
  CHECK(std::filesystem::is_empty(folder.path()));
  CHECK_THROWS(ExpertFileWriter(folder.path(), kSource, 0).finish(0), ErrorCode::kInvalidArgument, "output", {"cannot write"});
}

void test_damaged() {
  const TempFolder folder;
  const std::string valid = small_file(folder);
  const std::string path = folder.path("bad.bin");
  const auto refused = [&](const std::string& text, const std::vector<std::string>& parts) {
    folder.write("bad.bin", text);
    CHECK_THROWS(ExpertFile(path), ErrorCode::kCorruptFile, path, parts);
  };
  CHECK_THROWS(ExpertFile(folder.path("gone")), ErrorCode::kNotFound, folder.path("gone"), {"cannot open"});
  refused("lynx_rt experts 1\n", {"found a file of 18 bytes"});
  refused(std::string(8192, 'x'), {"made by lynx-rt pack", "another file"});
  refused(valid.substr(0, valid.size() - kPage), {str_cat("expected ", valid.size(), " bytes, found ", valid.size() - kPage)});
  refused(valid + std::string(kPage, '\0'), {str_cat("found ", valid.size() + kPage)});
  std::string bad = valid;
  bad[20] ^= 1;
  refused(bad, {"the header: expected the CRC-32C"});
  bad = valid;
  bad[valid.size() - kPage + 30] ^= 1;
  refused(bad, {"the index: expected the CRC-32C"});
  bad = valid;
  bad[0] = 'L';
  refused(bad, {"another file"});
  FaultyCalls calls;
  calls.fail_from = 0, calls.num_fails = 2;
  CHECK_THROWS(ExpertFile(folder.path("small.bin"), calls), ErrorCode::kCorruptFile, folder.path("small.bin"),
               {"cannot read at byte 0", std::strerror(EIO)});
}

// An index or header with damage under right checksums must be refused, or describe records that lie inside of the file.
void test_fuzz() {
  const TempFolder folder;
  const std::string valid = small_file(folder);
  const std::string path = folder.path("fuzz.bin");
  int64_t index_offset, index_bytes;
  std::memcpy(&index_offset, &valid[27], 8);
  std::memcpy(&index_bytes, &valid[35], 8);
  std::mt19937_64 random(20261);
  const auto below = [&](int64_t n) { return int64_t(random() % uint64_t(n)); };
  constexpr uint64_t kNumbers[] = {0,           1, 2, 3, 31, 255, 4096, uint64_t(1) << 24, uint64_t(1) << 32, uint64_t(1) << 62,
                                   ~uint64_t(0)};
  int loaded = 0, refused = 0;
  const auto seal = [](std::string& bad, int64_t offset, int64_t bytes) {
    if (offset >= 0 && bytes >= 0 && offset <= int64_t(bad.size()) && bytes <= int64_t(bad.size()) - offset) {
      const uint32_t crc = crc32c(&bad[size_t(offset)], bytes);
      std::memcpy(&bad[43], &crc, 4);
    }
    const uint32_t crc = crc32c(bad.data(), 47);
    std::memcpy(&bad[47], &crc, 4);
  };
  for (int round = 0; round < 4000; ++round) {
    std::string bad = valid;
    for (int64_t n = 1 + below(3); n > 0; --n) {
      const int64_t at = below(8) == 0 ? 19 + below(24) : index_offset + below(index_bytes);
      if (below(2)) {
        bad[size_t(at)] = char(below(256));
      } else {
        std::memcpy(&bad[size_t(at)], &kNumbers[below(std::size(kNumbers))], below(2) ? 4 : 8);
      }
    }
    int64_t offset, bytes;
    std::memcpy(&offset, &bad[27], 8);
    std::memcpy(&bytes, &bad[35], 8);
    seal(bad, offset, bytes);
    folder.write("fuzz.bin", bad);
    try {
      const ExpertFile file(path);
      ++loaded;
      for (int64_t l = 0; l < file.num_layers(); ++l)
        for (int64_t e = 0; e < file.num_experts(l); ++e) {
          const ExpertRecord& r = file.record(l, e);
          const RecordLayout& layout = file.layout(l, e);
          CHECK(r.offset >= kPage && r.offset + layout.bytes() <= int64_t(bad.size()) && layout.bytes() > 0);
          const auto* record = reinterpret_cast<const uint8_t*>(bad.data()) + r.offset;
          const ExpertWeights w = layout.view(record);
          for (const WeightView* v : w.views()) {
            const auto* begin = static_cast<const uint8_t*>(v->data);
            CHECK(v->empty() || (begin >= record && begin + v->bytes() <= record + layout.bytes()));
          }
        }
    } catch (const Error& e) {
      ++refused;
      CHECK(e.code() == ErrorCode::kCorruptFile);
      CHECK(std::string(e.what()).find(path) == 0);
    }
  }
  CHECK(loaded > 100 && refused > 1000);
}

}  // namespace

int main() {
  test_round_trip();
  test_writer_cleans_up();
  test_damaged();
  test_fuzz();
  return check::result("test_expert_file");
}
