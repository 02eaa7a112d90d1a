// Reads checkpoints in the safetensors format: an 8-byte little-endian header length, a JSON header
// {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, "__metadata__": {..}}, then the data.
// Format: https://github.com/huggingface/safetensors (README, "Format"). Test: tests/checkpoint/test_safetensors.py.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/tensor.h"

namespace lynx_rt {

// One tensor as it lies in the file. `dtype` is the file's own name ("BF16", "F32", "I64", "F8_E4M3", ...), so that a
// type the runtime cannot compute with is still listed, and refused only where it is used.
struct TensorInfo {
  std::string dtype;
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;
  int64_t bytes = 0;
  int file = 0;  // index into Checkpoint::files()
};

// All tensors of a model folder: `model.safetensors`, or those of the shards that `model.safetensors.index.json` names. The index
// decides which files are read and, where two files hold a tensor of one name, which of them counts; the rest of it is not read,
// as in transformers. Keeps the files mapped for as long as it lives. Thread-safety: const methods are safe from any thread.
class Checkpoint {
 public:
  // `path`: a folder or a single .safetensors file. Throws kNotFound where there is neither file (the text says what was
  // looked for), kCorruptFile for everything malformed: truncated or oversized header (limit 100 MB), bad JSON,
  // duplicate names, unknown dtype, negative or overflowing shape, offsets that are out of range, overlap, leave holes or
  // disagree with shape x dtype; an index that names a missing file or a path outside the folder; a tensor in two shards of which
  // the index names neither.
  static Checkpoint open(const std::string& path);

  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  const TensorInfo& at(const std::string& name) const;  // throws kCorruptFile: missing tensor
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const std::vector<MappedFile>& files() const { return files_; }
  int64_t total_bytes() const;            // of all tensors
  bool contains(const void* data) const;  // whether it lies in a mapped file
  // A hash, in hexadecimal, of the files' names, sizes and times of change: it changes when a file is replaced.
  std::string fingerprint() const;
  // Throws kCorruptFile where a file was written to or truncated since it was opened.
  void check_unchanged() const;
  // Drops the files' pages from this process's memory; a later access reads them again.
  void drop_pages() const;

 private:
  std::map<std::string, TensorInfo> tensors_;
  std::vector<MappedFile> files_;
};

}  // namespace lynx_rt
