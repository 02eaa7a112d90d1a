// Raising errors: fail(code, field, parts...) concatenates its parts into the message.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lynx_rt/error.h"

namespace lynx_rt {

namespace detail {
void append(std::string& out, std::string_view s);
void append(std::string& out, const char* s);
void append(std::string& out, const std::string& s);
void append(std::string& out, double v);
void append(std::string& out, bool v);
void append(std::string& out, const std::vector<int64_t>& shape);  // "[8, 64]"
template <class T>
  requires(std::is_integral_v<T> && !std::is_same_v<T, bool>)
void append(std::string& out, T v) {
  out += std::to_string(v);
}
}  // namespace detail

template <class... Parts>
std::string str_cat(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

// Returns name(item) of each item, joined by ", ".
template <class Range, class Name>
std::string joined(const Range& range, Name name) {
  std::string text;
  for (const auto& item : range) text += (text.empty() ? "" : ", ") + std::string(name(item));
  return text;
}

template <class... Parts>
[[noreturn]] void fail(ErrorCode code, std::string field, const Parts&... parts) {
  throw Error(code, std::move(field), str_cat(parts...));
}

// Throws kInvalidArgument, for a caller's mistake. The field begins the message: "temperature: expected ..., got ...".
template <class... Parts>
[[noreturn]] void invalid(const std::string& field, const Parts&... parts) {
  throw Error(ErrorCode::kInvalidArgument, field, str_cat(field, ": ", parts...));
}

// An error that one row of a step has caused; the other rows are valid.
class RowError : public Error {
 public:
  RowError(int64_t row, ErrorCode code, std::string field, const std::string& text)
      : Error(code, std::move(field), text), row_(row) {}
  int64_t row() const { return row_; }

 private:
  int64_t row_;
};

// An error that ends the requests of a step, but no other: what the step needed could not be had.
class StepError : public Error {
 public:
  using Error::Error;
};

// Returns the shortest text that reads back as the same number.
std::string shortest(double value);
// Reads a number in the C locale; false where the text is not one number and nothing else.
bool read_number(std::string_view text, double& value);

}  // namespace lynx_rt
