#include "base/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "base/error.h"
#include "base/file_time.h"

namespace lynx_rt {

FileCalls& FileCalls::system() {
  static FileCalls calls;
  return calls;
}

// O_NONBLOCK makes opening a named pipe return, so that DirectFile can reject it.
constexpr int kOpenFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

int FileCalls::open(const char* path, bool direct) {
#if defined(O_DIRECT)
  const int descriptor = ::open(path, kOpenFlags | (direct ? O_DIRECT : 0));
  if (descriptor < 0) return -errno;
  // Read-ahead would put pages into the cache that nobody removes.
  if (!direct) ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM);
#else
  const int descriptor = ::open(path, kOpenFlags);
  if (descriptor < 0) return -errno;
#if defined(F_NOCACHE)
  if (direct) ::fcntl(descriptor, F_NOCACHE, 1);
#endif
#endif
  return descriptor;
}

int64_t FileCalls::read(int descriptor, void* to, int64_t bytes, int64_t offset) {
  const int64_t count = ::pread(descriptor, to, size_t(bytes), offset);
  return count < 0 ? -errno : count;
}

void FileCalls::drop_cached(int descriptor, int64_t offset, int64_t bytes) {
#if defined(POSIX_FADV_DONTNEED)
  ::posix_fadvise(descriptor, offset, bytes, POSIX_FADV_DONTNEED);
#else
  static_cast<void>(descriptor), static_cast<void>(offset), static_cast<void>(bytes);
#endif
}

DirectFile::DirectFile(const std::string& path, FileCalls& calls) : path_(path), calls_(calls) {
  if (path.find('\0') != std::string::npos) fail(ErrorCode::kNotFound, path, "the path contains a NUL character");
  descriptor_ = calls.open(path.c_str(), false);
  if (descriptor_ < 0)
    fail(descriptor_ == -ENOENT || descriptor_ == -ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kCorruptFile, path, path,
         ": cannot open: ", std::system_category().message(-descriptor_));
  struct stat info;
  const char* found = ::fstat(descriptor_, &info) != 0 ? "one whose size cannot be read"
                      : S_ISDIR(info.st_mode)          ? "a folder"
                      : !S_ISREG(info.st_mode)         ? "something else"
                      : info.st_size == 0              ? "an empty one"
                                                       : nullptr;
  if (found) {
    ::close(descriptor_);
    fail(ErrorCode::kCorruptFile, path, path, ": expected a file, found ", found);
  }
  size_ = info.st_size;
  time_ = change_time(info);
  direct_descriptor_ = calls.open(path.c_str(), true);
  direct_ = direct_descriptor_ >= 0;
}

DirectFile::~DirectFile() {
  ::close(descriptor_);
  if (direct_descriptor_ >= 0) ::close(direct_descriptor_);
}

void DirectFile::check_unchanged() const {
  struct stat info;
  if (::fstat(descriptor_, &info) != 0 || (info.st_size == size_ && change_time(info) == time_)) return;
  if (info.st_size < size_)
    fail(ErrorCode::kCorruptFile, path_, path_, ": was cut off while it is in use: it had ", size_, " bytes, now ", info.st_size);
  fail(ErrorCode::kCorruptFile, path_, path_, ": was written to while it is in use; load the model again");
}

ReadResult DirectFile::read(int64_t offset, int64_t bytes, void* to) const {
  ReadResult result;
  bool direct = is_direct(), cached = false;
  int64_t done = 0;
  while (done < bytes) {
    // After a short read the rest may not be aligned any more, as direct reads have to be.
    const bool direct_now = direct && done % kAlignment == 0;
    cached |= !direct_now;
    const int64_t count =
        calls_.read(direct_now ? direct_descriptor_ : descriptor_, static_cast<char*>(to) + done, bytes - done, offset + done);
    if (count > 0) {
      done += count;
      result.num_short_reads += done < bytes;
    } else if (count == 0) {
      result.truncated = true;
      break;
    } else if (count == -EINVAL && direct_now) {
      // Some file systems open the file for direct reads and then refuse them.
      direct = false;
      direct_.store(false, std::memory_order_relaxed);
    } else if ((count == -EIO || count == -ESTALE) && result.retries == 0) {
      ++result.retries;
    } else if (count != -EINTR) {
      result.error = int(-count);
      break;
    }
  }
  result.offset = offset + done;
  if (cached) calls_.drop_cached(descriptor_, offset, bytes);
  return result;
}

}  // namespace lynx_rt
