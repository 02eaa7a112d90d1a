// A parsed JSON document. json.cc is the one file that includes the JSON parser, which is slow to compile.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lynx_rt {

// One JSON value. A number is int64_t where it is written without fraction and exponent and fits, otherwise double
// (finite: a number beyond double is refused). Strings are valid UTF-8. Thread-safety: const methods from any thread.
struct Json {
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // sorted by key, no key twice

  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> value;

  // The value where it has that type, else null: `if (const auto* s = json.as<std::string>())`.
  template <class T>
  const T* as() const {
    return std::get_if<T>(&value);
  }
  const Json* find(std::string_view key) const;  // member of an object; null where absent or not an object
};

// Parses `text`, which must be one JSON value and nothing else. Throws kCorruptFile with field `file`; the message names `file`,
// `what` ("header", "index", "config") and the place. Beyond what the JSON grammar forbids, it refuses: a key twice in an object,
// nesting deeper than 64, more than 4 million values (bounds memory: a value and its key take 72 bytes). Test:
// tests/cpp/test_config.cc, tests/checkpoint/.
Json parse_json(std::string_view text, const std::string& file, const char* what);

// Describes a value for "expected ..., got ...": `null`, `true`, `the number 5`, `the string "abc"`, `a list of 3`.
std::string describe(const Json& value);

// Make untrusted text safe for an error message: printable ASCII stays, the rest becomes \xNN, the text is cut after 160
// characters. quote() also puts it in double quotes.
std::string printable(std::string_view text);
std::string quote(std::string_view text);

}  // namespace lynx_rt
