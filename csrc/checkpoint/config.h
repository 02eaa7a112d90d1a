// Typed reading of config.json with errors that name the key.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/types.h"
#include "checkpoint/json.h"

namespace lynx_rt {

// A JSON object with typed access. Every getter throws kCorruptFile naming file, key, what was expected and what was
// found. Copies share the parsed document. Thread-safety: none (getters note what they are asked for).
class ConfigReader {
 public:
  // `path`: a config.json. Throws kNotFound, kCorruptFile (not JSON, not an object, over 16 MB, duplicate keys).
  static ConfigReader open(const std::string& path);
  static ConfigReader parse(const std::string& text, const std::string& name_in_errors);
  static ConfigReader of(Json document, const std::string& name_in_errors);

  bool has(const std::string& key) const;  // present and not null
  int64_t integer(const std::string& key, int64_t min, int64_t max) const;
  int64_t integer_or(const std::string& key, int64_t fallback, int64_t min, int64_t max) const;
  double number(const std::string& key, double min, double max) const;  // finite
  double number_or(const std::string& key, double fallback, double min, double max) const;
  bool boolean_or(const std::string& key, bool fallback) const;
  std::string string(const std::string& key) const;
  std::string string_or(const std::string& key, const std::string& fallback) const;
  std::vector<int64_t> integers_or(const std::string& key, std::vector<int64_t> fallback, int64_t min, int64_t max) const;
  std::vector<int64_t> integer_or_list(const std::string& key, int64_t min, int64_t max) const;  // 2 -> [2]; absent -> []
  // Infinity, as Python or transformers 5 writes it, is a number here where `max` is infinite.
  std::vector<double> numbers_or(const std::string& key, std::vector<double> fallback, double min, double max) const;
  std::vector<std::string> strings_or(const std::string& key, std::vector<std::string> fallback) const;
  std::optional<ConfigReader> object(const std::string& key) const;  // nullopt where absent or null
  std::string first_of(const std::vector<std::string>& keys) const;  // first key present; throws, naming all, where none is
  std::vector<std::string> keys() const;
  // Returns the keys that are not null and that no getter has been asked for. Keys of an inner object that object() gave are
  // included, as "rope_scaling.factor".
  std::vector<std::string> unread_keys() const;
  const std::string& name() const { return name_; }
  [[noreturn]] void fail_key(const std::string& key, const std::string& text) const;

 private:
  struct Node;
  std::shared_ptr<const Node> node_;
  std::string name_;  // for errors: "config.json" or "config.json: rope_parameters"
};

// Reads dtype or torch_dtype ("bfloat16", "torch.bfloat16", ...); nullopt where absent or "auto". Throws kUnsupported for others.
std::optional<DType> read_config_dtype(const ConfigReader& config);

}  // namespace lynx_rt
