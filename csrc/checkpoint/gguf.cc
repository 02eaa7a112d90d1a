#include "checkpoint/gguf.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

namespace lynx_rt {

namespace {

constexpr GgufType kTypes[] = {
    {"F32", 0, 1, 4},       {"F16", 1, 1, 2},       {"Q4_0", 2, 32, 18},      {"Q4_1", 3, 32, 20},     {"Q5_0", 6, 32, 22},
    {"Q5_1", 7, 32, 24},    {"Q8_0", 8, 32, 34},    {"Q2_K", 10, 256, 84},    {"Q3_K", 11, 256, 110},  {"Q4_K", 12, 256, 144},
    {"Q5_K", 13, 256, 176}, {"Q6_K", 14, 256, 210}, {"IQ2_XXS", 16, 256, 66}, {"IQ2_XS", 17, 256, 74}, {"IQ3_XXS", 18, 256, 98},
    {"IQ1_S", 19, 256, 50}, {"IQ4_NL", 20, 32, 18}, {"IQ3_S", 21, 256, 110},  {"IQ2_S", 22, 256, 82},  {"IQ4_XS", 23, 256, 136},
    {"I8", 24, 1, 1},       {"I16", 25, 1, 2},      {"I32", 26, 1, 4},        {"I64", 27, 1, 8},       {"F64", 28, 1, 8},
    {"IQ1_M", 29, 256, 56}, {"BF16", 30, 1, 2},     {"TQ1_0", 34, 256, 54},   {"TQ2_0", 35, 256, 66},  {"MXFP4", 39, 32, 17},
    {"NVFP4", 40, 64, 36},  {"Q1_0", 41, 128, 18},
};

constexpr int kMaxDepth = 8;               // of arrays in arrays
constexpr int kMaxDims = 4;                // of a tensor
constexpr int kMaxParts = 99999;           // of a split model: the numbers in the names have five digits
constexpr int64_t kDefaultAlignment = 32;  // where general.alignment is absent

// Kinds of metadata values, by their numbers in the file.
enum Kind : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) { return at < text.size() ? uint8_t(text[at]) : uint8_t(0); };
    const uint8_t first = byte(i);
    const int more = first < 0x80 ? 0 : first >> 5 == 6 ? 1 : first >> 4 == 14 ? 2 : first >> 3 == 30 ? 3 : -1;
    if (more < 0) return false;
    uint32_t code = more == 0 ? first : first & (0x3fu >> more);
    for (int k = 1; k <= more; ++k) {
      if (byte(i + size_t(k)) >> 6 != 2) return false;
      code = code << 6 | (byte(i + size_t(k)) & 0x3fu);
    }
    constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};  // what is smaller has a shorter form
    if (code < kLeast[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
    i += size_t(more) + 1;
  }
  return true;
}

// Reads one file from its begin on. Every failure names the file, the place and what was found.
class Reader {
 public:
  explicit Reader(const MappedFile& file) : file_(file) {}

  int64_t at() const { return at_; }

  template <class... Parts>
  [[noreturn]] void reject(const std::string& field, const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, field, file_.path(), ": ", parts...);
  }

  template <class T>
  T number(const std::string& what) {
    T value;
    std::memcpy(&value, take(sizeof value, what), sizeof value);
    return value;
  }

  // Returns a count of things of at least `bytes` bytes each, which the rest of the file has room for.
  int64_t count(int64_t bytes, const std::string& what) {
    const uint64_t value = number<uint64_t>(what);
    const int64_t most = (file_.size() - at_) / bytes;
    if (value > uint64_t(most))
      reject(what, what, ": expected a length of at most ", most, ", for which the file has room, got ", value);
    return int64_t(value);
  }

  std::string string(const std::string& what) {
    const int64_t length = count(1, what);
    std::string text(reinterpret_cast<const char*>(take(length, what)), size_t(length));
    if (!is_utf8(text)) reject(what, what, ": expected UTF-8, got ", quote(text));
    return text;
  }

  Json value(uint32_t kind, const std::string& key, int depth) {
    switch (kind) {
      case kUint8: return {int64_t(number<uint8_t>(key))};
      case kInt8: return {int64_t(number<int8_t>(key))};
      case kUint16: return {int64_t(number<uint16_t>(key))};
      case kInt16: return {int64_t(number<int16_t>(key))};
      case kUint32: return {int64_t(number<uint32_t>(key))};
      case kInt32: return {int64_t(number<int32_t>(key))};
      case kInt64: return {number<int64_t>(key)};
      case kUint64: {
        const uint64_t v = number<uint64_t>(key);
        if (v > uint64_t(std::numeric_limits<int64_t>::max())) return {double(v)};
        return {int64_t(v)};
      }
      case kFloat32: return {double(number<float>(key))};
      case kFloat64: return {number<double>(key)};
      case kBool: {
        const uint8_t v = number<uint8_t>(key);
        if (v > 1) reject(key, key, ": expected 0 or 1 for a bool, got ", int(v));
        return {v == 1};
      }
      case kString: return {string(key)};
      case kArray: {
        if (depth == kMaxDepth) reject(key, key, ": arrays in arrays, more than ", kMaxDepth, " deep");
        const uint32_t of = number<uint32_t>(key);
        constexpr int64_t kLeastBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};  // by kind
        if (of >= std::size(kLeastBytes)) reject(key, key, ": unknown type of metadata ", of);
        Json::Array items(size_t(count(kLeastBytes[of], key)));
        for (Json& item : items) item = value(of, key, depth + 1);
        return {std::move(items)};
      }
      default: reject(key, key, ": unknown type of metadata ", kind);
    }
  }

 private:
  const uint8_t* take(int64_t bytes, const std::string& what) {
    if (bytes > file_.size() - at_)
      reject(what, "truncated: ", what, " takes ", bytes, " bytes at byte ", at_, ", the file has ", file_.size());
    const uint8_t* begin = file_.data() + at_;
    at_ += bytes;
    return begin;
  }

  const MappedFile& file_;
  int64_t at_ = 0;
};

const Json* find_in(const Json::Object& object, std::string_view key) {
  const auto at = std::lower_bound(object.begin(), object.end(), key,
                                   [](const auto& member, std::string_view k) { return member.first < k; });
  return at != object.end() && at->first == key ? &at->second : nullptr;
}

Json::Object read_metadata(Reader& reader, int64_t count) {
  Json::Object metadata;
  for (int64_t i = 0; i < count; ++i) {
    std::string key = reader.string(str_cat("key ", i, " of the metadata"));
    const std::string what = printable(key);
    const uint32_t kind = reader.number<uint32_t>(what);
    Json value = reader.value(kind, what, 0);
    metadata.emplace_back(std::move(key), std::move(value));
  }
  std::stable_sort(metadata.begin(), metadata.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 1; i < metadata.size(); ++i)
    if (metadata[i].first == metadata[i - 1].first)
      reader.reject(metadata[i].first, "the metadata has the key ", quote(metadata[i].first), " twice");
  return metadata;
}

// Reads one tensor's entry; its data are left as an offset from the data's begin.
std::pair<std::string, TensorInfo> read_entry(Reader& reader, int64_t index, uint64_t& offset) {
  std::string name = reader.string(str_cat("name of tensor ", index));
  if (name.empty()) reader.reject(str_cat("name of tensor ", index), "name of tensor ", index, ": expected a name, got none");
  const std::string what = "tensor " + quote(name);
  const uint32_t dims = reader.number<uint32_t>(what);
  if (dims > kMaxDims) reader.reject(name, what, ": expected at most ", kMaxDims, " dimensions, got ", dims);
  TensorInfo info;
  int64_t values = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    const uint64_t size = reader.number<uint64_t>(what);
    if (size > uint64_t(std::numeric_limits<int64_t>::max()) || __builtin_mul_overflow(values, int64_t(size), &values))
      reader.reject(name, what, ": the number of values overflows");
    info.shape.insert(info.shape.begin(), int64_t(size));
  }
  const uint32_t id = reader.number<uint32_t>(what);
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const GgufType& t) { return t.id == id; });
  if (type == std::end(kTypes)) reader.reject(name, what, ": unknown type ", id);
  const int64_t columns = info.shape.empty() ? 1 : info.shape.back();
  if (columns % type->values != 0)
    reader.reject(name, what, ": a row of ", type->name, " is whole blocks of ", type->values, " values, got ", columns,
                  " columns");
  info.dtype = type->name;
  if (__builtin_mul_overflow(values / type->values, type->bytes, &info.bytes))
    reader.reject(name, what, ": the number of bytes overflows");
  offset = reader.number<uint64_t>(what);
  return {std::move(name), std::move(info)};
}

int64_t read_alignment(const Reader& reader, const Json::Object& metadata) {
  const Json* value = find_in(metadata, "general.alignment");
  if (!value) return kDefaultAlignment;
  const auto* number = value->as<int64_t>();
  if (!number || *number <= 0 || *number % 8 != 0)
    reader.reject("general.alignment", "general.alignment: expected a multiple of 8, got ", describe(*value));
  return *number;
}

// Returns the number under `key` of a split model's part; `absent` where there is none.
int64_t split_number(const Json::Object& metadata, const std::string& path, const char* key, int64_t absent) {
  const Json* value = find_in(metadata, key);
  if (!value) return absent;
  const auto* number = value->as<int64_t>();
  if (!number || *number < 0 || *number > kMaxParts)
    fail(ErrorCode::kCorruptFile, key, path, ": ", key, ": expected a number from 0 to ", kMaxParts, ", got ", describe(*value));
  return *number;
}

// Returns the path of part `index` of `count`, given that of another part: "<stem>-00002-of-00003.gguf".
std::string part_path(const std::string& path, int64_t index, int64_t count) {
  constexpr size_t kSuffix = sizeof "-00001-of-00003.gguf" - 1;
  char suffix[48];
  int number = 0, of = 0, used = 0;
  const bool named = path.size() >= kSuffix &&
                     std::sscanf(path.c_str() + path.size() - kSuffix, "-%5d-of-%5d.gguf%n", &number, &of, &used) == 2 &&
                     used == int(kSuffix) && of == count;
  if (!named)
    fail(ErrorCode::kCorruptFile, "split.count", path, ": is a part of ", count, "; expected a name that ends in -00001-of-",
         count, ".gguf with five digits each, as llama.cpp's gguf-split gives");
  std::snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", int(index) + 1, int(count));
  return path.substr(0, path.size() - kSuffix) + suffix;
}

}  // namespace

const GgufType* find_gguf_type(std::string_view name) {
  for (const GgufType& type : kTypes)
    if (type.name == name) return &type;
  return nullptr;
}

bool is_gguf(const std::string& path) { return path.ends_with(".gguf"); }

const Json* GgufFile::find(std::string_view key) const { return find_in(metadata_, key); }

// Adds the tensors of files_[index]; the metadata are those of the part that was read last.
void GgufFile::read_part(int index) {
  const MappedFile& file = files_[size_t(index)];
  Reader reader(file);
  constexpr std::string_view kLfsPointer = "version https://git-lfs";
  if (std::string_view(reinterpret_cast<const char*>(file.data()), size_t(file.size())).starts_with(kLfsPointer))
    reader.reject(file.path(), "is a git-lfs pointer, not the data; run `git lfs pull`");
  if (const uint32_t magic = reader.number<uint32_t>("the magic number"); magic != 0x46554747)  // "GGUF"
    reader.reject(file.path(), "does not begin with \"GGUF\"; is this a GGUF file?");
  const uint32_t version = reader.number<uint32_t>("version");
  if (version != 2 && version != 3) reader.reject("version", "expected version 2 or 3 of GGUF, got ", version);
  constexpr int64_t kEntryBytes = 8 + 4 + 4 + 8, kMemberBytes = 8 + 4 + 1;  // at least
  const int64_t num_tensors = reader.count(kEntryBytes, "number of tensors");
  const int64_t num_members = reader.count(kMemberBytes, "number of metadata");
  metadata_ = read_metadata(reader, num_members);
  const int64_t alignment = read_alignment(reader, metadata_);

  struct Entry {
    uint64_t offset;
    std::string name;
    TensorInfo info;
  };
  std::vector<Entry> entries;
  for (int64_t i = 0; i < num_tensors; ++i) {
    uint64_t offset;
    auto [name, info] = read_entry(reader, i, offset);
    entries.push_back({offset, std::move(name), std::move(info)});
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.offset < b.offset; });
  const int64_t data = round_up(reader.at(), alignment);
  uint64_t used = 0;
  for (Entry& e : entries) {
    const std::string what = "tensor " + quote(e.name);
    if (e.offset % uint64_t(alignment) != 0)
      reader.reject(e.name, what, ": expected an offset at a multiple of ", alignment, ", got ", e.offset);
    if (e.offset < used)
      reader.reject(e.name, what, ": overlaps another tensor: it begins at ", e.offset, ", the data before it end at ", used);
    const uint64_t room = uint64_t(std::max<int64_t>(0, file.size() - data));
    if (e.offset > room || uint64_t(e.info.bytes) > room - e.offset)
      reader.reject(e.name, "truncated: ", what, " of ", e.info.bytes, " bytes at ", e.offset,
                    " ends after the data, which have ", room, " bytes");
    used = e.offset + uint64_t(e.info.bytes);
    e.info.data = file.data() + data + e.offset;
    e.info.file = index;
    if (!tensors_.emplace(e.name, std::move(e.info)).second) reader.reject(e.name, what, ": is there twice");
  }
}

GgufFile GgufFile::open(const std::string& path) {
  GgufFile gguf;
  gguf.files_.emplace_back(path);
  gguf.read_part(0);
  const int64_t count = split_number(gguf.metadata_, path, "split.count", 1);
  if (count <= 1) return gguf;
  gguf = {};
  Json::Object first;
  for (int64_t i = 0; i < count; ++i) {
    gguf.files_.emplace_back(part_path(path, i, count));
    gguf.read_part(int(i));
    const std::string& part = gguf.files_.back().path();
    const int64_t number = split_number(gguf.metadata_, part, "split.no", -1),
                  of = split_number(gguf.metadata_, part, "split.count", 1);
    if (number != i || of != count)
      fail(ErrorCode::kCorruptFile, "split.no", part, ": expected part ", i, " of ", count, ", got part ", number, " of ", of);
    if (i == 0) first = std::move(gguf.metadata_);
  }
  gguf.metadata_ = std::move(first);
  return gguf;
}

}  // namespace lynx_rt
