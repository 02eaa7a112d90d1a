// The file of a model's experts: a record per layer and expert, in the form in which products read it, so that one read brings an
// expert. `lynx-rt pack` makes it.
//
//   [0, 4096)   kMark; size of the file, offset and size of the index, as int64; CRC-32C of the index, and of the header before it
//   records     each from a multiple of 4096 on: expert_record.h
//   index       where the weights come from; the layouts of records; for each layer the offset, layout and CRC-32C of its experts
//
// Numbers are little-endian. Nothing in the file is trusted: what does not fit is refused.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/direct_file.h"
#include "tiers/expert_record.h"

namespace lynx_rt {

// The origin of the weights of an expert file.
struct ExpertSource {
  std::string model_type;
  std::string quantization;  // EngineOptions::quantization: "none", "int8", "int4"
  std::string fingerprint;   // of the checkpoint's files
  bool operator==(const ExpertSource&) const = default;
};

struct ExpertRecord {
  int64_t offset = 0;
  int32_t layout = 0;  // its number
  uint32_t crc32c = 0;
};

// The index of an expert file. Immutable. Test: tests/cpp/test_expert_file.cc.
class ExpertFile {
 public:
  // Throws kNotFound (missing), kCorruptFile (any other file, a damaged or unfinished one).
  explicit ExpertFile(const std::string& path, FileCalls& calls = FileCalls::system());

  const std::shared_ptr<const DirectFile>& file() const { return file_; }
  const ExpertSource& source() const { return source_; }
  int64_t num_layers() const { return int64_t(records_.size()); }
  int64_t num_experts(int64_t layer) const { return int64_t(records_[size_t(layer)].size()); }  // 0 for a layer without experts
  const ExpertRecord& record(int64_t layer, int64_t expert) const { return records_[size_t(layer)][size_t(expert)]; }
  const RecordLayout& layout(int64_t layer, int64_t expert) const { return layouts_[size_t(record(layer, expert).layout)]; }
  int64_t max_record_bytes() const;

 private:
  friend class ExpertFileWriter;
  ExpertFile() = default;

  static constexpr char kMark[] = "lynx_rt experts 1\n";
  static constexpr int64_t kHeader = RecordLayout::kAlignment;

  std::shared_ptr<const DirectFile> file_;
  ExpertSource source_;
  std::vector<RecordLayout> layouts_;
  std::vector<std::vector<ExpertRecord>> records_;  // [layers][experts]
};

// Writes an expert file, record by record, in the memory of one record. The file appears under its name when it is finished; until then
// it is PATH.partial, which the destructor removes.
class ExpertFileWriter {
 public:
  // `expected_bytes`: of all records. Throws kInvalidArgument (field output) where the file cannot be written, for example because
  // another process writes it or the disk has less space.
  ExpertFileWriter(const std::string& path, ExpertSource source, int64_t expected_bytes);
  ~ExpertFileWriter();
  ExpertFileWriter(const ExpertFileWriter&) = delete;

  // Layers come in order, and the experts of a layer too; layers between them have none.
  void add(int64_t layer, const ExpertWeights& expert);
  // Writes index and header, and gives the file its name. Returns its size.
  int64_t finish(int64_t num_layers);

 private:
  [[noreturn]] void fail_write(int error);
  void discard();
  void write(const void* data, int64_t bytes, int64_t offset);

  std::string path_, partial_;
  ExpertFile file_;
  int64_t expected_bytes_, offset_, flushed_ = 0;
  std::vector<std::string> layout_texts_;  // as the index has them
  std::vector<uint8_t> record_;
  int descriptor_ = -1;
};

}  // namespace lynx_rt
