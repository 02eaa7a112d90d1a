// Makes a config.json of a GGUF file's metadata: the parts that architectures share.
#pragma once
#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/gguf_model.h"

namespace lynx_rt {

// Makes the members of a config.json from the metadata under "<architecture>.". Keys are given without that.
class ConfigWriter {
 public:
  explicit ConfigWriter(const GgufFile& file) : file_(file), prefix_(str_cat(architecture_of(file).name, ".")) {}

  template <class... Parts>
  [[noreturn]] void reject(const std::string& key, const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, prefix_ + key, file_.files()[0].path(), ": ", prefix_, key, ": ", parts...);
  }
  [[noreturn]] void unsupported(const std::string& key, const std::string& value, const std::string& supported) const {
    fail(ErrorCode::kUnsupported, prefix_ + key, file_.files()[0].path(), ": ", prefix_, key, " ", value,
         " is not supported; supported: ", supported);
  }

  template <class... Parts>
  [[noreturn]] void reject_tensor(const std::string& name, const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, name, file_.files()[0].path(), ": tensor ", name, ": ", parts...);
  }

  // Throws where a tensor of all experts of a layer holds another number of them.
  void check_experts(int64_t count) const {
    for (const auto& [name, info] : file_.tensors())
      if (name.ends_with("_exps.weight") && info.shape.size() == 3 && info.shape[0] != count)
        reject_tensor(name, "expected ", count, " experts as ", prefix_, "expert_count says, got shape ", info.shape);
  }

  // Returns whether any tensor's name ends so.
  bool any_tensor(std::string_view end) const {
    return std::any_of(file_.tensors().begin(), file_.tensors().end(), [&](const auto& t) { return t.first.ends_with(end); });
  }
  const TensorInfo* tensor(const std::string& name) const {
    const auto at = file_.tensors().find(name);
    return at == file_.tensors().end() ? nullptr : &at->second;
  }

  // Returns the value; null where the key is absent. Keys that were never asked for are refused by finish().
  const Json* find(const std::string& key) {
    read_.insert(key);
    return file_.find(prefix_ + key);
  }
  bool has(const std::string& key) { return find(key) != nullptr; }
  double number(const std::string& key, double absent) {
    const Json* value = find(key);
    if (!value) return absent;
    const Json one = scalar(key, *value);
    if (const auto* integer = one.as<int64_t>()) return double(*integer);
    if (const auto* real = one.as<double>()) return *real;
    reject(key, "expected a number, got ", describe(*value));
  }
  int64_t integer(const std::string& key) {
    const Json* value = find(key);
    if (!value) reject(key, "missing in the file's metadata");
    const Json one = scalar(key, *value);
    const auto* integer = one.as<int64_t>();
    constexpr int64_t kMost = int64_t(1) << 40;  // sums of a few do not overflow; families have limits of their own
    if (!integer || *integer < 0 || *integer > kMost) reject(key, "expected an integer from 0 to 2^40, got ", describe(*value));
    return *integer;
  }
  int64_t integer(const std::string& key, int64_t absent) { return has(key) ? integer(key) : absent; }
  bool boolean(const std::string& key, bool absent) {
    const Json* value = find(key);
    if (value && !value->as<bool>()) reject(key, "expected a bool, got ", describe(*value));
    return value ? *value->as<bool>() : absent;
  }
  // Returns the values of a key that has one for each of `count` layers; one value stands for all. Empty where the key is absent.
  std::vector<int64_t> integers(const std::string& key, int64_t count) {
    return list<int64_t>(key, count, "integers from 0 to 2^31", [](int64_t v) { return v >= 0 && v <= int64_t(1) << 31; });
  }
  std::vector<bool> booleans(const std::string& key, int64_t count) {
    const std::vector<bool> values = list<bool>(key, count, "bools", [](bool) { return true; });
    return values;
  }
  // Refuses any other number; absent is as `only`.
  void require(const std::string& key, double only) {
    if (const double found = number(key, only); found != only) unsupported(key, str_cat(found), str_cat(only));
  }

  void set(std::string_view name, Json value) { members_.emplace_back(std::string(name), std::move(value)); }
  // Sets a member to the value of the key.
  void copy(const std::string& key, std::string_view name) {
    const Json* value = find(key);
    if (!value) reject(key, "missing in the file's metadata");
    set(name, scalar(key, *value));
  }
  bool copy_if(const std::string& key, std::string_view name) {
    if (!has(key)) return false;
    copy(key, name);
    return true;
  }

  Json finish() {
    for (const auto& [key, value] : file_.metadata())
      if (key.starts_with(prefix_) && !read_.count(key.substr(prefix_.size())))
        fail(ErrorCode::kUnsupported, key, file_.files()[0].path(), ": the metadata have ", printable(key), ", ", describe(value),
             ", which is not supported and may change what the model computes");
    return {sorted(std::move(members_))};
  }

  static Json::Object sorted(Json::Object members) {
    std::sort(members.begin(), members.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    return members;
  }

  // The file has most numbers as float32. Returns the number with the fewest digits that is this float32: what config.json had.
  static double shortest(double value) {
    if (!std::isfinite(value) || double(float(value)) != value) return value;
    char text[32];
    const auto written = std::to_chars(text, text + sizeof text, float(value));
    double out = value;
    std::from_chars(text, written.ptr, out);
    return out;
  }

 private:
  static bool same(const Json& a, const Json& b) {
    return a.value.index() == b.value.index() &&
           std::visit(
               [&](const auto& first) {
                 using T = std::decay_t<decltype(first)>;
                 if constexpr (std::is_same_v<T, Json::Array> || std::is_same_v<T, Json::Object>)
                   return false;
                 else
                   return first == *b.as<T>();
               },
               a.value);
  }

  // A key may have a list with a value for each layer. Throws kUnsupported where they differ.
  Json scalar(const std::string& key, const Json& value) const {
    const auto* items = value.as<Json::Array>();
    if (items && items->empty()) reject(key, "expected a value, got an empty list");
    const Json& first = items ? items->front() : value;
    if (first.as<Json::Array>() || first.as<Json::Object>()) reject(key, "expected a value, got ", describe(first));
    for (size_t i = 1; items && i < items->size(); ++i)
      if (!same((*items)[i], first))
        unsupported(key, str_cat("with ", describe(first), " and ", describe((*items)[i])), "the same for all layers");
    const auto* real = first.as<double>();
    if (real && !std::isfinite(*real)) reject(key, "expected a finite number, got ", *real);
    return real ? Json{shortest(*real)} : first;
  }

  template <class T, class Valid>
  std::vector<T> list(const std::string& key, int64_t count, const char* expected, const Valid& valid) {
    const Json* value = find(key);
    if (!value) return {};
    const auto* items = value->as<Json::Array>();
    if (items && int64_t(items->size()) != count) reject(key, "expected ", count, " ", expected, ", got ", items->size());
    std::vector<T> out;
    for (int64_t i = 0; i < count; ++i) {
      const Json& item = items ? (*items)[size_t(i)] : *value;
      const T* of_layer = item.as<T>();
      if (!of_layer || !valid(*of_layer)) reject(key, "expected ", expected, ", got ", describe(item));
      out.push_back(*of_layer);
    }
    return out;
  }

  const GgufFile& file_;
  std::string prefix_;
  std::set<std::string> read_;
  Json::Object members_;
};

enum Gating : int64_t { kUnstated, kSoftmax, kSigmoid, kSoftmaxOfChosen };  // of expert_gating_func

// Returns the factors by which a tensor divides the rope's frequencies.
Json factors_of(const ConfigWriter& c, const std::string& name);
// Sets rope_theta and rope_scaling. `further`: members of a YaRN's rope_scaling that the architecture has.
void set_rope(ConfigWriter& c, Json::Object further = {});
// Sets the number of experts, k and I. `width`: the key of I.
void set_experts(ConfigWriter& c, std::string_view width, Gating gating, std::string_view count = "num_experts",
                 std::string_view top_k = "num_experts_per_tok");
// Refuses keys of routers that the architecture does not have.
void require_plain_router(ConfigWriter& c, bool normalized);
// Returns the factor of which families make `part` again: they cut factor * size to an integer.
double factor_of(int64_t part, int64_t size);
// Sets what all architectures with usual attention have. `partial`: whether a part of each head may be rotated.
void set_heads(ConfigWriter& c, bool partial = false);

// Architectures whose layers differ in more than experts. `layers`: num_hidden_layers.
void write_qwen_hybrid(ConfigWriter& c, std::string_view architecture, int64_t layers);
void write_gemma4(ConfigWriter& c, int64_t layers);

}  // namespace lynx_rt
