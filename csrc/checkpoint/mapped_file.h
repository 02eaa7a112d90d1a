// A read-only memory-mapped file.
#pragma once
#include <cstdint>
#include <string>

namespace lynx_rt {

// Move-only. Thread-safety: const methods are safe from any thread.
class MappedFile {
 public:
  // Throws kNotFound (missing), kCorruptFile (a folder, an empty file, unreadable).
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace lynx_rt
