#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/crc32c.h"
#include "base/error.h"
#include "tiers/expert_file.h"
#include "tiers/expert_index.h"

namespace lynx_rt {

namespace {

// Bytes after which what was written goes to the disk and out of the page cache, where it would push out the checkpoint that is read.
constexpr int64_t kFlushBytes = 64 << 20;

}  // namespace

ExpertFileWriter::ExpertFileWriter(const std::string& path, ExpertSource source, int64_t expected_bytes)
    : path_(path), partial_(path + ".partial"), expected_bytes_(expected_bytes), offset_(ExpertFile::kHeader) {
  file_.source_ = std::move(source);
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  descriptor_ = ::open(partial_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) fail_write(errno);
  // The process that had the lock may have given the file its name, or have removed it, since it was opened here.
  struct stat opened, named;
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 || ::fstat(descriptor_, &opened) != 0 ||
      ::stat(partial_.c_str(), &named) != 0 || opened.st_ino != named.st_ino || opened.st_dev != named.st_dev) {
    ::close(std::exchange(descriptor_, -1));
    invalid("output", "cannot write ", partial_, ": another process writes it");
  }
  if (::ftruncate(descriptor_, 0) != 0) fail_write(errno);  // what an interrupted process may have left
  const auto space = std::filesystem::space(partial_, error);
  if (!error && space.available < uintmax_t(expected_bytes)) fail_write(ENOSPC);
}

ExpertFileWriter::~ExpertFileWriter() { discard(); }

void ExpertFileWriter::discard() {
  if (descriptor_ < 0) return;
  std::remove(partial_.c_str());
  ::close(std::exchange(descriptor_, -1));
}

void ExpertFileWriter::fail_write(int error) {
  std::string text = str_cat("cannot write ", partial_, ": ", std::system_category().message(error));
  std::error_code unknown;
  const auto space = std::filesystem::space(partial_, unknown);
  if (error == ENOSPC || error == EDQUOT)
    text += str_cat("; the experts take ", expected_bytes_, " bytes", unknown ? "" : str_cat(", ", space.available, " are free"));
  discard();
  invalid("output", text);
}

void ExpertFileWriter::write(const void* data, int64_t bytes, int64_t offset) {
  for (int64_t done = 0; done < bytes;) {
    const int64_t count = ::pwrite(descriptor_, static_cast<const char*>(data) + done, size_t(bytes - done), offset + done);
    if (count < 0 && errno != EINTR) fail_write(errno);
    done += std::max<int64_t>(count, 0);
  }
}

void ExpertFileWriter::add(int64_t layer, const ExpertWeights& expert) {
  const RecordLayout layout(expert);
  IndexWriter text;
  text.layout(layout);
  const auto known = std::find(layout_texts_.begin(), layout_texts_.end(), text.bytes);
  const auto number = int32_t(known - layout_texts_.begin());
  if (known == layout_texts_.end()) {
    layout_texts_.push_back(text.bytes);
    file_.layouts_.push_back(layout);
  }
  record_.resize(size_t(std::max(int64_t(record_.size()), layout.bytes())));
  layout.write(expert, record_.data());
  if (layer >= int64_t(file_.records_.size())) file_.records_.resize(size_t(layer + 1));
  file_.records_[size_t(layer)].push_back({offset_, number, crc32c(record_.data(), layout.bytes())});
  write(record_.data(), layout.bytes(), offset_);
  offset_ += layout.bytes();
  if (offset_ - flushed_ < kFlushBytes) return;
  if (::fsync(descriptor_) != 0) fail_write(errno);
#if defined(POSIX_FADV_DONTNEED)
  ::posix_fadvise(descriptor_, flushed_, offset_ - flushed_, POSIX_FADV_DONTNEED);
#endif
  flushed_ = offset_;
}

int64_t ExpertFileWriter::finish(int64_t num_layers) {
  file_.records_.resize(size_t(num_layers));
  IndexWriter index;
  index.text(file_.source_.model_type), index.text(file_.source_.quantization), index.text(file_.source_.fingerprint);
  index.number(int64_t(layout_texts_.size()));
  for (const std::string& text : layout_texts_) index.bytes += text;
  index.number(num_layers);
  for (const auto& layer : file_.records_) {
    index.number(int64_t(layer.size()));
    for (const ExpertRecord& r : layer) index.number(r.offset), index.number(r.layout), index.number(r.crc32c);
  }
  const auto index_bytes = int64_t(index.bytes.size());
  const int64_t size = offset_ + round_up(index_bytes, RecordLayout::kAlignment);
  index.bytes.resize(size_t(size - offset_));
  write(index.bytes.data(), size - offset_, offset_);

  IndexWriter header;
  header.bytes.assign(ExpertFile::kMark, sizeof ExpertFile::kMark);
  header.number(size), header.number(offset_), header.number(index_bytes);
  header.number(crc32c(index.bytes.data(), index_bytes));
  header.number(crc32c(header.bytes.data(), int64_t(header.bytes.size())));
  header.bytes.resize(size_t(ExpertFile::kHeader));
  write(header.bytes.data(), ExpertFile::kHeader, 0);
  if (::fsync(descriptor_) != 0 || std::rename(partial_.c_str(), path_.c_str()) != 0) fail_write(errno);
#if defined(POSIX_FADV_DONTNEED)
  ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
#endif
  ::close(std::exchange(descriptor_, -1));
  return size;
}

}  // namespace lynx_rt
