// Reads a file past the system's page cache, so that what is read once does not push out what is used in every step, and at an eighth of
// the CPU time of reads through it.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace lynx_rt {

// Calls to the operating system about files. Virtual, so that tests can inject faults and delays. Thread-safety: safe from any thread.
class FileCalls {
 public:
  virtual ~FileCalls() = default;
  // Opens a file to read it; `direct`: past the page cache. Returns its descriptor, or -errno.
  virtual int open(const char* path, bool direct);
  // Reads as pread() does. Returns the number of bytes, 0 at the end of the file, or -errno.
  virtual int64_t read(int descriptor, void* to, int64_t bytes, int64_t offset);
  // Removes a range from the page cache, as far as the system does that.
  virtual void drop_cached(int descriptor, int64_t offset, int64_t bytes);

  static FileCalls& system();
};

// How a read ended.
struct ReadResult {
  int error = 0;                             // errno; 0 = none
  bool truncated = false;                    // the file ended before
  int64_t offset = 0;                        // of the first byte that was not read
  int64_t retries = 0, num_short_reads = 0;  // on the way
  bool ok() const { return error == 0 && !truncated; }
};

// An open file. Where the file system refuses reads past its cache (tmpfs, some overlays), they go through the cache and are removed
// from it afterwards. Thread-safety: const methods are safe from any thread. Test: tests/cpp/test_direct_file.cc.
class DirectFile {
 public:
  static constexpr int64_t kAlignment = 4096;  // of offsets, lengths and addresses

  // Throws kNotFound (missing), kCorruptFile (a folder, an empty file, unreadable).
  explicit DirectFile(const std::string& path, FileCalls& calls = FileCalls::system());
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  bool is_direct() const { return direct_.load(std::memory_order_relaxed); }
  // Throws kCorruptFile where the file was written to or cut off since it was opened.
  void check_unchanged() const;
  // Reads; all three are multiples of kAlignment. Goes on after signals and short reads, and tries once more after EIO and ESTALE.
  ReadResult read(int64_t offset, int64_t bytes, void* to) const;

 private:
  std::string path_;
  FileCalls& calls_;
  int descriptor_ = -1, direct_descriptor_ = -1;
  int64_t size_ = 0, time_ = 0;
  mutable std::atomic<bool> direct_ = false;
};

}  // namespace lynx_rt
