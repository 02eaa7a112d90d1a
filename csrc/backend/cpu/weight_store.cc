#include "backend/cpu/weight_store.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "base/memory.h"
#include "base/types.h"

namespace lynx_rt {

namespace {

// The file is: the mark, its own size in bytes as int64, zeros up to kHeader, then the pieces, each padded to kAlignment.
constexpr char kMark[] = "lynx_rt quantized weights 2\n";
constexpr int64_t kHeader = 4096, kAlignment = 64;

[[noreturn]] void fail_write(const std::string& path, int error) {
  invalid("quantization_cache", "cannot write ", path, ": ", std::system_category().message(error));
}

// A file that appears at `path` when it is closed; until then the data is in a temporary file beside it.
class NewFile {
 public:
  explicit NewFile(const std::string& path) : path_(path), temporary_(str_cat(path, ".", ::getpid())) {
    file_ = std::fopen(temporary_.c_str(), "wb");
    if (!file_) fail_write(temporary_, errno);
  }
  ~NewFile() {
    if (!file_) return;
    std::fclose(file_);
    std::remove(temporary_.c_str());
  }
  NewFile(const NewFile&) = delete;

  void write(const void* data, int64_t bytes) {
    if (std::fwrite(data, 1, size_t(bytes), file_) != size_t(bytes)) fail_write(temporary_, errno);
  }
  void close() {
    if (std::fflush(file_) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) fail_write(path_, errno);
    std::fclose(std::exchange(file_, nullptr));
  }

 private:
  std::string path_, temporary_;
  std::FILE* file_;
};

}  // namespace

WeightStore::WeightStore(std::string path) : path_(std::move(path)), offset_(kHeader) {
  if (path_.empty()) return;
  const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail_write(folder.string(), error.value());
  if (!std::filesystem::exists(path_)) return;
  auto file = std::make_unique<MappedFile>(path_);
  int64_t bytes = 0;
  const bool ours = file->size() >= kHeader && std::memcmp(file->data(), kMark, sizeof kMark) == 0;
  if (ours) std::memcpy(&bytes, file->data() + sizeof kMark, sizeof bytes);
  if (!ours || bytes != file->size())
    fail(ErrorCode::kCorruptFile, path_, path_, ": not a file of quantised weights, or not a whole one; remove it");
  file_ = std::move(file);
}

WeightStore::~WeightStore() { clear(); }

void WeightStore::clear() {
  for (const Piece& p : pieces_) release_pages(p.data, p.bytes);
  pieces_.clear();
}

char* WeightStore::next(int64_t bytes) {
  bytes = round_up(bytes, kAlignment);
  if (file_) {
    if (offset_ + bytes > file_->size())
      fail(ErrorCode::kCorruptFile, path_, path_, ": has fewer weights than the model; remove it");
    // The const_cast is safe: pieces that came from the file are never written to.
    char* at = const_cast<char*>(reinterpret_cast<const char*>(file_->data())) + offset_;
    offset_ += bytes;
    return at;
  }
  void* p = allocate_pages(bytes, "quantization");
  pieces_.push_back({static_cast<char*>(p), bytes});
  return pieces_.back().data;
}

void WeightStore::save() {
  if (file_ && offset_ != file_->size())
    fail(ErrorCode::kCorruptFile, path_, path_, ": has more weights than the model; remove it");
  if (path_.empty() || file_) return;
  char header[kHeader] = {};
  int64_t total = kHeader;
  for (const Piece& p : pieces_) total += p.bytes;
  std::memcpy(header, kMark, sizeof kMark);
  std::memcpy(header + sizeof kMark, &total, sizeof total);
  NewFile file(path_);
  file.write(header, kHeader);
  for (const Piece& p : pieces_) file.write(p.data, p.bytes);
  file.close();
}

}  // namespace lynx_rt
