// A read-only memory-mapped file. If another process writes to the file or truncates it, the mapped values change; reading the
// truncated part ends this process (SIGBUS), as does a disk error. Removing the file, or renaming another file to its name, does
// no harm.
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
  bool contains(const void* p) const {
    const auto at = reinterpret_cast<uintptr_t>(p), begin = reinterpret_cast<uintptr_t>(data_);
    return at >= begin && at - begin < uintptr_t(size_);
  }
  int64_t time() const { return time_; }  // of the last change, nanoseconds since 1970
  const std::string& path() const { return path_; }
  // Throws kCorruptFile where the file at the path is still the mapped one, but was written to or truncated since.
  void check_unchanged() const;
  // Drops its pages from this process's memory; a later access reads them again.
  void drop_pages() const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0, time_ = 0;
  uint64_t device_ = 0, inode_ = 0;  // identity of the mapped file
};

}  // namespace lynx_rt
