// Reads files in the GGUF format: the magic number "GGUF", a version, counts of tensors and of metadata, the metadata (typed keys and
// values), the tensors' names, shapes, types and offsets, then the data. All numbers are little-endian.
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Test: tests/checkpoint/test_gguf.py.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mapped_file.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"

namespace lynx_rt {

// An element type of the format. Values lie in blocks; a block of `values` values of a row takes `bytes` bytes.
struct GgufType {
  std::string_view name;  // "F32", "Q4_K", ...
  uint32_t id;
  int64_t values, bytes;
};
const GgufType* find_gguf_type(std::string_view name);  // null where there is none

bool is_gguf(const std::string& path);  // by its name: "*.gguf"

// The files of one model: one, or all parts of a split model. Thread-safety: const methods are safe from any thread.
class GgufFile {
 public:
  // `path`: the file, or any part "...-00001-of-0000N.gguf" of a split model, whose other parts lie beside it. Throws kNotFound where
  // there is no such file, kCorruptFile for everything malformed: another magic number, a version other than 2 and 3, lengths and
  // counts that the file has no room for, strings that are not UTF-8, a key or a tensor twice, unknown types, a row that is not whole
  // blocks, tensors that overlap, end outside the file or lie at other than multiples of general.alignment; parts that are missing or
  // do not belong together.
  static GgufFile open(const std::string& path);

  // Keys and values, of the first part. Integers beyond int64 are doubles.
  const Json::Object& metadata() const { return metadata_; }
  const Json* find(std::string_view key) const;  // null where absent
  // Shapes have the slowest dimension first, as everywhere else in this project: the reverse of the file's order.
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const std::vector<MappedFile>& files() const { return files_; }
  std::vector<MappedFile> take_files() && { return std::move(files_); }

 private:
  void read_part(int index);

  Json::Object metadata_;
  std::map<std::string, TensorInfo> tensors_;
  std::vector<MappedFile> files_;
};

}  // namespace lynx_rt
