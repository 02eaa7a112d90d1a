#include "checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>
#include <string_view>
#include <utility>

#include "checkpoint/gguf_model.h"
#include "checkpoint/json.h"

namespace lynx_rt {

namespace {

constexpr char kSingleName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr int64_t kMaxIndexBytes = 100'000'000;

static_assert(std::endian::native == std::endian::little, "tensor data is used in place, and files are little-endian");

// The format's element types, as the reference implementation names them.
struct ElementType {
  std::string_view name;
  int bits;
};
constexpr ElementType kElementTypes[] = {
    {"F4", 4},      {"F6_E2M3", 6},     {"F6_E3M2", 6},     {"BOOL", 8}, {"U8", 8},   {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16},   {"I32", 32},
    {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64}, {"I64", 64}, {"U64", 64},
};

// One header entry, before its offsets are known to lie in the file.
struct Entry {
  std::string name;
  TensorInfo info;
  int64_t begin = 0;  // bytes from the start of the data
  int64_t end = 0;
};

template <class... Parts>
[[noreturn]] void fail_file(const std::string& path, const Parts&... parts) {
  fail(ErrorCode::kCorruptFile, path, path, ": ", parts...);
}

// Reads the entry of one tensor. Every failure names file, tensor and what was found.
class EntryReader {
 public:
  EntryReader(const std::string& path, const std::string& name, const Json& json) : path_(path), name_(name), json_(json) {}

  Entry read() const {
    if (!json_.as<Json::Object>()) reject("expected an object, got ", describe(json_));
    Entry entry;
    entry.name = name_;
    const int bits = read_dtype(entry.info.dtype);
    entry.info.shape = read_sizes("shape");
    const std::vector<int64_t> offsets = read_sizes("data_offsets");
    if (offsets.size() != 2) reject("expected two data_offsets, got ", offsets.size());
    entry.begin = offsets[0];
    entry.end = offsets[1];
    if (entry.begin > entry.end) reject("data_offsets ", offsets, " end before they begin");

    entry.info.bytes = shape_bytes(entry.info, bits);
    if (entry.end - entry.begin != entry.info.bytes) {
      reject("shape ", entry.info.shape, " of ", entry.info.dtype, " needs ", entry.info.bytes, " bytes, but data_offsets ",
             offsets, " span ", entry.end - entry.begin);
    }
    return entry;
  }

 private:
  template <class... Parts>
  [[noreturn]] void reject(const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, name_, path_, ": tensor ", quote(name_), ": ", parts...);
  }

  const Json& member(const char* key) const {
    const Json* value = json_.find(key);
    if (!value) reject(key, " is missing");
    return *value;
  }

  // Returns the element's size in bits.
  int read_dtype(std::string& dtype) const {
    const Json& value = member("dtype");
    const auto* name = value.as<std::string>();
    if (!name) reject("dtype: expected a string, got ", describe(value));
    for (const ElementType& type : kElementTypes) {
      if (type.name == *name) {
        dtype = *name;
        return type.bits;
      }
    }
    reject("unknown dtype ", quote(*name));
  }

  std::vector<int64_t> read_sizes(const char* key) const {
    const Json& value = member(key);
    const auto* items = value.as<Json::Array>();
    if (!items) reject(key, ": expected a list of integers, got ", describe(value));
    std::vector<int64_t> sizes;
    sizes.reserve(items->size());
    for (const Json& item : *items) {
      const auto* size = item.as<int64_t>();
      if (!size || *size < 0) {
        reject(key, ": expected integers from 0 to ", std::numeric_limits<int64_t>::max(), ", got ", describe(item));
      }
      sizes.push_back(*size);
    }
    return sizes;
  }

  // The product is checked after each dimension, so the product of every prefix of the shape fits into int64 too.
  int64_t shape_bytes(const TensorInfo& info, int bits) const {
    int64_t elements = 1;
    bool overflow = false;
    for (const int64_t dim : info.shape) overflow |= __builtin_mul_overflow(elements, dim, &elements);
    int64_t total_bits = 0;
    overflow |= __builtin_mul_overflow(elements, int64_t(bits), &total_bits);
    if (overflow) reject("the size of shape ", info.shape, " overflows");
    if (total_bits % 8 != 0) reject("shape ", info.shape, " of ", info.dtype, " is not a whole number of bytes");
    return total_bits / 8;
  }

  const std::string& path_;
  const std::string& name_;
  const Json& json_;
};

// Returns the text of the header, after checking its length against the file.
std::string_view header_text(const MappedFile& file) {
  constexpr std::string_view kLfsPointer = "version https://git-lfs";
  const std::string_view text(reinterpret_cast<const char*>(file.data()), size_t(file.size()));
  if (text.starts_with(kLfsPointer)) fail_file(file.path(), "is a git-lfs pointer, not the data; run `git lfs pull`");
  if (file.size() < kLengthBytes) {
    fail_file(file.path(), "truncated: ", file.size(), " bytes, but the header length alone takes ", kLengthBytes);
  }
  uint64_t length;
  std::memcpy(&length, file.data(), sizeof length);
  if (length > uint64_t(kMaxHeaderBytes)) {
    fail_file(file.path(), "header of ", length, " bytes is over the limit of ", kMaxHeaderBytes,
              "; is this a safetensors file?");
  }
  if (int64_t(length) > file.size() - kLengthBytes) {
    fail_file(file.path(), "truncated: the header takes ", kLengthBytes + int64_t(length), " bytes, the file has ", file.size());
  }
  const std::string_view header = text.substr(size_t(kLengthBytes), size_t(length));
  // The format requires the brace, so that no other kind of file is taken for this one.
  if (!header.starts_with('{')) fail_file(file.path(), "the header must start with '{'; is this a safetensors file?");
  return header;
}

void check_metadata(const std::string& path, const Json& metadata) {
  if (metadata.as<std::nullptr_t>()) return;
  const auto* members = metadata.as<Json::Object>();
  if (!members) fail_file(path, "__metadata__: expected an object, got ", describe(metadata));
  for (const auto& [key, value] : *members) {
    if (!value.as<std::string>()) {
      fail_file(path, "__metadata__: ", quote(key), ": expected a string, got ", describe(value));
    }
  }
}

// The format allows neither holes nor overlaps: ordered by offset, each tensor begins where the one before it ends.
void check_layout(const MappedFile& file, std::vector<Entry>& entries, int64_t data_bytes) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  int64_t used = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != used) {
      const char* fault = entry.begin < used ? "overlaps another tensor" : "leaves a hole before it";
      fail(ErrorCode::kCorruptFile, entry.name, file.path(), ": tensor ", quote(entry.name), ": ", fault,
           ": its data begins at byte ", entry.begin, ", the data before it ends at ", used);
    }
    used = entry.end;
  }
  if (used > data_bytes) {
    fail_file(file.path(), "truncated: the header describes ", used, " bytes of data, the file has ", data_bytes, " (",
              file.size(), " in all)");
  }
  if (used < data_bytes) {
    fail_file(file.path(), data_bytes - used, " bytes after the last tensor: the header describes ", used,
              " bytes of data, the file has ", data_bytes);
  }
}

std::vector<Entry> read_entries(const MappedFile& file, int file_index) {
  const std::string_view text = header_text(file);
  const Json header = parse_json(text, file.path(), "header");
  std::vector<Entry> entries;
  for (const auto& [name, value] : *header.as<Json::Object>()) {  // an object: the text starts with '{'
    if (name == "__metadata__") {
      check_metadata(file.path(), value);
    } else {
      entries.push_back(EntryReader(file.path(), name, value).read());
    }
  }
  const int64_t data_begin = kLengthBytes + int64_t(text.size());
  check_layout(file, entries, file.size() - data_begin);
  for (Entry& entry : entries) {
    entry.info.data = file.data() + data_begin + entry.begin;
    entry.info.file = file_index;
  }
  return entries;
}

// Tensor name -> shard file name.
using WeightMap = std::map<std::string, std::string>;

// Returns whether the name is that of a file or folder, not a path to another folder.
bool is_plain_name(std::string_view name) {
  const bool special = name.empty() || name == "." || name == "..";
  return !special && std::none_of(name.begin(), name.end(),
                                  [](char c) { return c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

// Accepts plain names with slashes between them, so that no path leads out of the folder. (A shard may be a symbolic link, since
// the Hugging Face cache stores all files that way.)
bool is_path_below(std::string_view path) {
  for (size_t slash; (slash = path.find('/')) != path.npos; path.remove_prefix(slash + 1))
    if (!is_plain_name(path.substr(0, slash))) return false;
  return is_plain_name(path);
}

WeightMap read_index(const std::string& path) {
  const MappedFile file(path);
  if (file.size() > kMaxIndexBytes) {
    fail_file(path, "index of ", file.size(), " bytes is over the limit of ", kMaxIndexBytes);
  }
  const Json index = parse_json({reinterpret_cast<const char*>(file.data()), size_t(file.size())}, path, "index");
  if (!index.as<Json::Object>()) fail_file(path, "expected an object, got ", describe(index));
  const Json* weight_map = index.find("weight_map");
  if (!weight_map) fail_file(path, "weight_map is missing");
  const auto* members = weight_map->as<Json::Object>();
  if (!members) fail_file(path, "weight_map: expected an object, got ", describe(*weight_map));
  if (members->empty()) fail_file(path, "weight_map names no tensor");

  WeightMap shard_of;
  for (const auto& [tensor, value] : *members) {
    const auto* shard = value.as<std::string>();
    if (!shard) {
      fail(ErrorCode::kCorruptFile, tensor, path, ": weight_map: ", quote(tensor), ": expected a file name, got ",
           describe(value));
    }
    if (!is_path_below(*shard)) {
      fail(ErrorCode::kCorruptFile, tensor, path, ": weight_map: ", quote(tensor),
           ": expected the name of a file in the same folder or below, got ", quote(*shard));
    }
    shard_of.emplace(tensor, *shard);
  }
  return shard_of;
}

MappedFile open_shard(const std::string& path, const std::string& index_path) {
  try {
    return MappedFile(path);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kNotFound) throw;
    fail(ErrorCode::kCorruptFile, path, index_path, ": names a file that does not exist: ", path);
  }
}

struct Shards {
  std::vector<MappedFile> files;
  std::map<std::string, TensorInfo> tensors;
};

Shards open_shards(const std::filesystem::path& folder, const std::string& index_path) {
  const WeightMap shard_of = read_index(index_path);
  std::set<std::string> names;
  for (const auto& [tensor, shard] : shard_of) names.insert(shard);

  Shards out;
  for (const std::string& name : names) {
    const MappedFile& file = out.files.emplace_back(open_shard((folder / name).string(), index_path));
    for (Entry& entry : read_entries(file, int(out.files.size()) - 1)) {
      const auto [known, is_new] = out.tensors.try_emplace(entry.name, entry.info);
      if (is_new) continue;
      const auto place = shard_of.find(entry.name);
      const std::string& other = out.files[size_t(known->second.file)].path();
      if (place == shard_of.end() || (place->second != name && (folder / place->second).string() != other))
        fail(ErrorCode::kCorruptFile, entry.name, file.path(), ": tensor ", quote(entry.name), ": is in ", other,
             " as well, and ", index_path, " does not say which is meant");
      if (place->second == name) known->second = std::move(entry.info);
    }
  }
  return out;
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;  // what exists but cannot be examined is left to MappedFile, which says why
  const auto missing = [&](const std::string& file) { return fs::status(file, ignored).type() == fs::file_type::not_found; };
  Checkpoint checkpoint;
  if (is_gguf(path)) {
    GgufFile gguf = GgufFile::open(path);
    checkpoint.tensors_ = gguf_tensors(gguf);
    checkpoint.files_ = std::move(gguf).take_files();
    return checkpoint;
  }
  std::string single = path;
  if (fs::is_directory(path, ignored)) {
    single = (fs::path(path) / kSingleName).string();
    const std::string index = (fs::path(path) / kIndexName).string();
    if (missing(single) && missing(index)) {
      fail(ErrorCode::kNotFound, path, path, ": found neither ", kSingleName, " nor ", kIndexName, " in this folder");
    }
    if (missing(single)) {
      Shards shards = open_shards(fs::path(path), index);
      checkpoint.files_ = std::move(shards.files);
      checkpoint.tensors_ = std::move(shards.tensors);
      return checkpoint;
    }
  }
  checkpoint.files_.emplace_back(single);
  for (Entry& entry : read_entries(checkpoint.files_[0], 0)) {
    checkpoint.tensors_.emplace(std::move(entry.name), std::move(entry.info));
  }
  return checkpoint;
}

const TensorInfo& Checkpoint::at(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it != tensors_.end()) return it->second;
  const std::string where = files_.empty() ? "checkpoint" : files_[0].path();
  fail(ErrorCode::kCorruptFile, name, where, ": missing tensor ", quote(name));
}

int64_t Checkpoint::total_bytes() const {
  int64_t total = 0;  // cannot overflow: the tensors of a file do not overlap, so this is at most the files' sizes
  for (const auto& [name, info] : tensors_) total += info.bytes;
  return total;
}

bool Checkpoint::contains(const void* data) const {
  return std::any_of(files_.begin(), files_.end(), [&](const MappedFile& file) { return file.contains(data); });
}

std::string Checkpoint::fingerprint() const {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, draft-eastlake-fnv
  for (const MappedFile& file : files_)
    for (unsigned char c :
         str_cat(std::filesystem::path(file.path()).filename().string(), " ", file.size(), " ", file.time(), "\n"))
      hash = (hash ^ c) * 0x100000001b3u;
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

void Checkpoint::check_unchanged() const {
  for (const MappedFile& file : files_) file.check_unchanged();
}

void Checkpoint::drop_pages() const {
  for (const MappedFile& file : files_) file.drop_pages();
}

}  // namespace lynx_rt
