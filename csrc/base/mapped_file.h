// A read-only memory-mapped file. Another process that writes to it or cuts it off changes what is read here, and reading what was
// cut off ends the process (SIGBUS), as does an error of the disk. Renaming another file to its name, and removing it, do no harm.
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
  int64_t time() const { return time_; }  // of the last change, nanoseconds since 1970
  const std::string& path() const { return path_; }
  // Throws kCorruptFile where the file at the path is still the one that is mapped, but was written to or cut off since.
  void check_unchanged() const;
  // Lets its pages go from this process's memory; a later access brings them back.
  void drop_pages() const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0, time_ = 0;
  uint64_t device_ = 0, inode_ = 0;  // which file it is
};

}  // namespace lynx_rt
