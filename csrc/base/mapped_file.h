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
  int64_t time() const { return time_; }  // of the last change, nanoseconds since 1970
  const std::string& path() const { return path_; }
  // Lets its pages go from this process's memory; a later access brings them back.
  void drop_pages() const;

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0, time_ = 0;
};

}  // namespace lynx_rt
