// Memory for quantised weights, and the file that keeps them between runs.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"

namespace lynx_rt {

// A sequence of pieces of memory: to be filled, or, where an earlier run left them in the file, filled already. The file holds
// the pieces in the order in which they were asked for; its name says whose they are (BackendOptions::quantization_cache).
class WeightStore {
 public:
  // `path`: the file, empty for none; its folder is made. Throws kCorruptFile where it is there and not one of ours.
  explicit WeightStore(std::string path);
  ~WeightStore();
  WeightStore(const WeightStore&) = delete;

  bool filled() const { return file_ != nullptr; }
  bool keeps() const { return !path_.empty(); }  // there is a file, or will be
  // The next piece, 64-byte aligned, valid as long as the store. Throws kOutOfMemory; kCorruptFile where the file is shorter.
  char* next(int64_t bytes);
  // Throws kCorruptFile where the file that they came from was written to or cut off.
  void check_unchanged() const {
    if (file_) file_->check_unchanged();
  }
  // Writes the pieces to the file, unless they came from it: to a temporary file first, so that a file is whole or not there.
  // Throws kInvalidArgument (field quantization_cache) where it cannot be written; kCorruptFile where the file that they came
  // from has more.
  void save();

 private:
  struct Piece {
    char* data;
    int64_t bytes;
  };

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  int64_t offset_ = 0;  // of the next piece in the file
  std::vector<Piece> pieces_;
};

}  // namespace lynx_rt
