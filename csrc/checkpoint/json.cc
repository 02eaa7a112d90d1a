#include "checkpoint/json.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace lynx_rt {

namespace {

constexpr size_t kMaxDepth = 64;
constexpr int64_t kMaxValues = 4'000'000;
constexpr size_t kMaxPrinted = 160;

// Receives the parser's events and builds the tree. The parser itself is iterative, so depth costs no stack there; the
// limit protects the recursive destructor of Json.
class Builder {
 public:
  using Source = nlohmann::json;

  Builder(const std::string& file, const char* what) : file_(file), what_(what) {}
  Json take() { return std::move(root_); }

  bool null() { return add(nullptr); }
  bool boolean(bool v) { return add(v); }
  bool number_integer(int64_t v) { return add(v); }
  bool number_unsigned(uint64_t v) {
    if (v > uint64_t(std::numeric_limits<int64_t>::max())) return add(double(v));
    return add(int64_t(v));
  }
  bool number_float(double v, const std::string&) { return add(v); }
  bool string(std::string& v) { return add(std::move(v)); }
  bool binary(Source::binary_t&) { return false; }  // never sent for JSON text

  bool start_object(size_t) { return open(Json::Object()); }
  bool start_array(size_t) { return open(Json::Array()); }
  bool key(std::string& v) {
    key_ = std::move(v);
    return true;
  }
  bool end_object() {
    auto& members = std::get<Json::Object>(open_.back()->value);
    std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    const auto twice =
        std::adjacent_find(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
    if (twice != members.end()) reject("key ", quote(twice->first), " appears twice", place());
    open_.pop_back();
    return true;
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Source::exception& e) {
    // The library's texts start with "[json.exception.parse_error.101] ", which tells a user nothing.
    std::string_view text = e.what();
    if (const size_t end = text.find("] "); end != text.npos) text.remove_prefix(end + 2);
    reject("not valid JSON at byte ", position, ": ", printable(text));
  }

 private:
  template <class... Parts>
  [[noreturn]] void reject(const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, file_, file_, ": ", what_, ": ", parts...);
  }

  // Names the place of the innermost open object by the key it stands under. An object is sorted when it is closed, so the last
  // member of the open parent is the one that is open.
  std::string place() const {
    if (open_.size() < 2) return "";
    const auto* parent = open_[open_.size() - 2]->as<Json::Object>();
    return parent ? " in " + quote(parent->back().first) : " in a list";
  }

  // Appends to the innermost open container. Only that container grows, and no open one lies inside it, so the
  // pointers in open_ stay valid.
  Json* append(Json v) {
    if (++count_ > kMaxValues) reject("more than ", kMaxValues, " values");
    if (open_.empty()) return &(root_ = std::move(v));
    if (auto* array = std::get_if<Json::Array>(&open_.back()->value)) return &array->emplace_back(std::move(v));
    return &std::get<Json::Object>(open_.back()->value).emplace_back(std::move(key_), std::move(v)).second;
  }
  template <class T>
  bool add(T v) {
    append(Json{std::move(v)});
    return true;
  }
  template <class T>
  bool open(T container) {
    if (open_.size() == kMaxDepth) reject("nested deeper than ", kMaxDepth, " levels");
    open_.push_back(append(Json{std::move(container)}));
    return true;
  }

  const std::string& file_;
  const char* what_;
  Json root_;
  std::string key_;  // a key that has been read, whose value comes next
  std::vector<Json*> open_;
  int64_t count_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  const auto* members = as<Object>();
  if (!members) return nullptr;
  const auto it = std::lower_bound(members->begin(), members->end(), key,
                                   [](const auto& member, std::string_view k) { return member.first < k; });
  return it != members->end() && it->first == key ? &it->second : nullptr;
}

Json parse_json(std::string_view text, const std::string& file, const char* what) {
  // The parser takes a NUL for the end of the text and would accept whatever follows it.
  if (const size_t nul = text.find('\0'); nul != text.npos) {
    fail(ErrorCode::kCorruptFile, file, file, ": ", what, ": not valid JSON at byte ", nul + 1, ": a NUL character");
  }
  Builder builder(file, what);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

std::string describe(const Json& json) {
  if (json.as<std::nullptr_t>()) return "null";
  if (const auto* v = json.as<bool>()) return *v ? "true" : "false";
  if (const auto* v = json.as<int64_t>()) return str_cat("the number ", *v);
  if (const auto* v = json.as<double>()) return str_cat("the number ", *v);
  if (const auto* v = json.as<std::string>()) return "the string " + quote(*v);
  if (const auto* v = json.as<Json::Array>()) return str_cat("a list of ", v->size());
  return "an object";
}

std::string printable(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const char c : text.substr(0, kMaxPrinted)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out.append({'\\', 'x', kHex[byte >> 4], kHex[byte & 15]});
    }
  }
  if (text.size() > kMaxPrinted) out += "...";
  return out;
}

std::string quote(std::string_view text) { return '"' + printable(text) + '"'; }

}  // namespace lynx_rt
