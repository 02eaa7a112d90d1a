#include "base/error.h"

#include <charconv>
#include <cstdio>
#include <locale>
#include <sstream>

namespace lynx_rt::detail {

void append(std::string& out, std::string_view s) { out.append(s); }
void append(std::string& out, const char* s) { out.append(s); }
void append(std::string& out, const std::string& s) { out.append(s); }
void append(std::string& out, bool v) { out.append(v ? "true" : "false"); }

void append(std::string& out, double v) {
  char buf[32];
  std::snprintf(buf, sizeof buf, "%g", v);
  out.append(buf);
}

void append(std::string& out, const std::vector<int64_t>& shape) {
  out.push_back('[');
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i) out.append(", ");
    out.append(std::to_string(shape[i]));
  }
  out.push_back(']');
}

}  // namespace lynx_rt::detail

namespace lynx_rt {

std::string shortest(double value) {
  char buffer[32];
  return std::string(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
}

bool read_number(std::string_view text, double& value) {
#if defined(_LIBCPP_VERSION) && _LIBCPP_VERSION < 200000  // it has no std::from_chars() for double
  std::istringstream in{std::string(text)};
  in.imbue(std::locale::classic());
  in >> std::noskipws >> value;
  return !in.fail() && in.peek() == std::istringstream::traits_type::eof() && text[0] != '+';
#else
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
#endif
}

}  // namespace lynx_rt
