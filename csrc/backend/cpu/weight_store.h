// Memory for quantised weights, and the file that keeps them between runs.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"

namespace lynx_rt {

// A sequence of pieces of memory, which the caller fills, or which are filled already where an earlier run left them in the file.
// The file holds the pieces in the order of the next() calls. Its name says which weights they belong to
// (BackendOptions::quantization_cache).
class WeightStore {
 public:
  // `path`: the file, empty for none; its folder is made. Throws kCorruptFile where the file exists and is not a WeightStore's.
  explicit WeightStore(std::string path);
  ~WeightStore();
  WeightStore(const WeightStore&) = delete;

  bool filled() const { return file_ != nullptr; }
  bool keeps() const { return !path_.empty(); }  // there is a file, or save() will write one
  bool is_mapped(const void* data) const { return file_ && file_->contains(data); }
  // Returns the next piece, 64-byte aligned, valid as long as the store. Throws kOutOfMemory; kCorruptFile where the file ends before.
  char* next(int64_t bytes);
  // Frees the pieces that the caller has filled.
  void clear();
  // Throws kCorruptFile where the file that the pieces came from was written to or cut off.
  void check_unchanged() const {
    if (file_) file_->check_unchanged();
  }
  // Writes the pieces to the file, unless they came from it. A temporary file is written first, so that the file is never incomplete.
  // Throws kInvalidArgument (field quantization_cache) where it cannot be written; kCorruptFile where the pieces came from a file
  // that has more.
  void save();

 private:
  struct Piece {
    char* data;
    int64_t bytes;
  };

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  int64_t offset_ = 0;  // where the next piece begins in the file
  std::vector<Piece> pieces_;
};

}  // namespace lynx_rt
