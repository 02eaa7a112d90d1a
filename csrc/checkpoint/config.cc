#include "checkpoint/config.h"

#include <limits>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/mapped_file.h"
#include "checkpoint/json.h"

namespace lynx_rt {

namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;

std::string range_text(int64_t min, int64_t max) {
  if (max == std::numeric_limits<int64_t>::max()) return str_cat("an integer of at least ", min);
  return str_cat("an integer from ", min, " to ", max);
}

bool in_range(const int64_t* v, int64_t min, int64_t max) { return v && *v >= min && *v <= max; }

}  // namespace

// One object of the document. It keeps the document alive.
struct ConfigReader::Node {
  std::shared_ptr<const Json> document;
  const Json* object;
  mutable std::set<std::string> asked;
  mutable std::map<std::string, std::shared_ptr<const Node>> opened;  // objects within, by key

  // Returns null where the key is absent, and where its value is null, which configs use for "not set".
  const Json* find(const std::string& key) const {
    asked.insert(key);
    const Json* value = object->find(key);
    return value && !value->as<std::nullptr_t>() ? value : nullptr;
  }
};

ConfigReader ConfigReader::open(const std::string& path) {
  const MappedFile file(path);
  if (file.size() > kMaxConfigBytes) {
    fail(ErrorCode::kCorruptFile, path, path, ": ", file.size(), " bytes, over the limit of ", kMaxConfigBytes);
  }
  return parse(std::string(reinterpret_cast<const char*>(file.data()), size_t(file.size())), path);
}

namespace {

constexpr std::string_view kInfinity = "Infinity";

// Python's json writes infinity as a bare word, which is no JSON. Returns the text with that word as a string.
std::string quote_infinity(const std::string& text) {
  if (text.find(kInfinity) == std::string::npos) return text;
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (in_string && text[i] == '\\' && i + 1 < text.size()) {
      out += text[i++];
    } else if (text[i] == '"') {
      in_string = !in_string;
    } else if (!in_string && text.compare(i, kInfinity.size(), kInfinity) == 0) {
      out.append("\"").append(kInfinity).append("\"");
      i += kInfinity.size() - 1;
      continue;
    }
    out += text[i];
  }
  return out;
}

}  // namespace

ConfigReader ConfigReader::parse(const std::string& text, const std::string& name_in_errors) {
  return of(parse_json(quote_infinity(text), name_in_errors, "config"), name_in_errors);
}

ConfigReader ConfigReader::of(Json parsed, const std::string& name_in_errors) {
  const auto document = std::make_shared<const Json>(std::move(parsed));
  if (!document->as<Json::Object>()) {
    fail(ErrorCode::kCorruptFile, name_in_errors, name_in_errors, ": expected an object, got ", describe(*document));
  }
  ConfigReader reader;
  reader.node_ = std::make_shared<const Node>(Node{document, document.get(), {}, {}});
  reader.name_ = name_in_errors;
  return reader;
}

void ConfigReader::fail_key(const std::string& key, const std::string& text) const {
  fail(ErrorCode::kCorruptFile, key, name_, ": ", key, ": ", text);
}

bool ConfigReader::has(const std::string& key) const { return node_->find(key) != nullptr; }

int64_t ConfigReader::integer(const std::string& key, int64_t min, int64_t max) const {
  const Json* value = node_->find(key);
  if (!value) fail_key(key, "missing, expected " + range_text(min, max));
  const auto* v = value->as<int64_t>();
  if (!in_range(v, min, max)) fail_key(key, "expected " + range_text(min, max) + ", got " + describe(*value));
  return *v;
}

int64_t ConfigReader::integer_or(const std::string& key, int64_t fallback, int64_t min, int64_t max) const {
  return has(key) ? integer(key, min, max) : fallback;
}

double ConfigReader::number(const std::string& key, double min, double max) const {
  const std::string expected = str_cat("expected a number from ", min, " to ", max);
  const Json* value = node_->find(key);
  if (!value) fail_key(key, "missing, " + expected);
  const auto* integer = value->as<int64_t>();
  const auto* real = value->as<double>();  // finite: the parser refuses a number that overflows
  const double v = integer ? double(*integer) : real ? *real : 0;
  if ((!integer && !real) || v < min || v > max) fail_key(key, expected + ", got " + describe(*value));
  return v;
}

double ConfigReader::number_or(const std::string& key, double fallback, double min, double max) const {
  return has(key) ? number(key, min, max) : fallback;
}

bool ConfigReader::boolean_or(const std::string& key, bool fallback) const {
  const Json* value = node_->find(key);
  if (!value) return fallback;
  const auto* v = value->as<bool>();
  if (!v) fail_key(key, "expected true or false, got " + describe(*value));
  return *v;
}

std::string ConfigReader::string(const std::string& key) const {
  const Json* value = node_->find(key);
  if (!value) fail_key(key, "missing, expected a string");
  const auto* v = value->as<std::string>();
  if (!v) fail_key(key, "expected a string, got " + describe(*value));
  return *v;
}

std::string ConfigReader::string_or(const std::string& key, const std::string& fallback) const {
  return has(key) ? string(key) : fallback;
}

std::vector<int64_t> ConfigReader::integers_or(const std::string& key, std::vector<int64_t> fallback, int64_t min,
                                               int64_t max) const {
  const Json* value = node_->find(key);
  if (!value) return fallback;
  const auto* items = value->as<Json::Array>();
  if (!items) fail_key(key, "expected a list, each " + range_text(min, max) + ", got " + describe(*value));
  std::vector<int64_t> out;
  for (const Json& item : *items) {
    const auto* v = item.as<int64_t>();
    if (!in_range(v, min, max)) {
      fail_key(key, str_cat("item ", out.size(), ": expected ", range_text(min, max), ", got ", describe(item)));
    }
    out.push_back(*v);
  }
  return out;
}

namespace {

// Returns the number; nullopt for another value. transformers 5 writes infinity as {"__float__": "Infinity"}.
std::optional<double> number_of(const Json& json) {
  if (const auto* v = json.as<int64_t>()) return double(*v);
  if (const auto* v = json.as<double>()) return *v;
  const Json* written = json.find("__float__");
  const auto* text = (written ? written : &json)->as<std::string>();
  if (text && *text == kInfinity) return std::numeric_limits<double>::infinity();
  return std::nullopt;
}

}  // namespace

std::vector<double> ConfigReader::numbers_or(const std::string& key, std::vector<double> fallback, double min, double max) const {
  const Json* value = node_->find(key);
  if (!value) return fallback;
  const std::string expected = str_cat("a number from ", min, " to ", max);
  const auto* items = value->as<Json::Array>();
  if (!items) fail_key(key, "expected a list, each " + expected + ", got " + describe(*value));
  std::vector<double> out;
  for (const Json& item : *items) {
    const std::optional<double> number = number_of(item);
    const double v = number.value_or(0);
    if (!number || v < min || v > max) {
      fail_key(key, str_cat("item ", out.size(), ": expected ", expected, ", got ", describe(item)));
    }
    out.push_back(v);
  }
  return out;
}

std::vector<std::string> ConfigReader::strings_or(const std::string& key, std::vector<std::string> fallback) const {
  const Json* value = node_->find(key);
  if (!value) return fallback;
  const auto* items = value->as<Json::Array>();
  if (!items) fail_key(key, "expected a list of strings, got " + describe(*value));
  std::vector<std::string> out;
  for (const Json& item : *items) {
    const auto* v = item.as<std::string>();
    if (!v) fail_key(key, str_cat("item ", out.size(), ": expected a string, got ", describe(item)));
    out.push_back(*v);
  }
  return out;
}

std::vector<int64_t> ConfigReader::integer_or_list(const std::string& key, int64_t min, int64_t max) const {
  const Json* value = node_->find(key);
  if (!value) return {};
  if (value->as<Json::Array>()) return integers_or(key, {}, min, max);
  const auto* v = value->as<int64_t>();
  if (!in_range(v, min, max)) {
    fail_key(key, "expected " + range_text(min, max) + " or a list of such, got " + describe(*value));
  }
  return {*v};
}

std::optional<ConfigReader> ConfigReader::object(const std::string& key) const {
  const Json* value = node_->find(key);
  if (!value) return std::nullopt;
  if (!value->as<Json::Object>()) fail_key(key, "expected an object, got " + describe(*value));
  ConfigReader reader;
  std::shared_ptr<const Node>& node = node_->opened[key];
  if (!node) node = std::make_shared<const Node>(Node{node_->document, value, {}, {}});
  reader.node_ = node;
  reader.name_ = name_ + ": " + key;
  return reader;
}

std::string ConfigReader::first_of(const std::vector<std::string>& keys) const {
  std::string all;
  for (const std::string& key : keys) {
    if (has(key)) return key;
    all += all.empty() ? key : " or " + key;
  }
  fail(ErrorCode::kCorruptFile, keys.empty() ? "" : keys[0], name_, ": ", all, ": missing");
}

std::vector<std::string> ConfigReader::keys() const {
  std::vector<std::string> out;
  for (const auto& [key, value] : *node_->object->as<Json::Object>()) out.push_back(key);
  return out;
}

std::vector<std::string> ConfigReader::unread_keys() const {
  std::vector<std::string> out;
  for (const auto& [key, value] : *node_->object->as<Json::Object>())
    if (!value.as<std::nullptr_t>() && !node_->asked.count(key)) out.push_back(key);
  for (const auto& [key, node] : node_->opened) {
    ConfigReader within;
    within.node_ = node;
    for (const std::string& unread : within.unread_keys()) out.push_back(key + "." + unread);
  }
  return out;
}

std::optional<DType> read_config_dtype(const ConfigReader& config) {
  const char* key = config.has("dtype") ? "dtype" : "torch_dtype";
  const std::string text = config.string_or(key, "auto");
  if (text == "auto") return std::nullopt;
  std::string_view name = text;
  if (constexpr std::string_view kPrefix = "torch."; name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  fail(ErrorCode::kUnsupported, key, config.name(), ": ", key, ": expected float32, bfloat16 or float16, got ", quote(text));
}

}  // namespace lynx_rt
