#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <vector>

#include "backend/moe_types.h"
#include "base/error.h"

namespace lynx_rt {
namespace {

constexpr const char* kField = "selection";
constexpr int kMaxBeta = 16;

// "alpha=8" -> {"alpha", "8"}
struct Setting {
  std::string_view key;
  std::string_view value;
};

// What follows the colon of "policy:key=value,key=value"; nothing where there is no colon.
std::vector<Setting> parse_settings(std::string_view text) {
  std::vector<Setting> settings;
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return settings;
  for (size_t begin = colon + 1; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view item = text.substr(begin, end - begin);
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos) invalid(kField, "expected key=value, got \"", item, "\"");
    const Setting setting{item.substr(0, equals), item.substr(equals + 1)};
    for (const Setting& earlier : settings)
      if (earlier.key == setting.key) invalid(kField, "key \"", setting.key, "\" is given twice");
    settings.push_back(setting);
    begin = end + 1;
  }
  return settings;
}

// Parses the whole of `setting.value` and checks it with `in_range`; `expected` says in words what that accepts.
template <class Number, class InRange>
Number number(const Setting& setting, const char* expected, InRange in_range) {
  Number value{};
  const char* const end = setting.value.data() + setting.value.size();
  const auto [stop, error] = std::from_chars(setting.value.data(), end, value);
  if (error != std::errc() || stop != end || !in_range(value))
    invalid(kField, setting.key, ": expected ", expected, ", got \"", setting.value, "\"");
  return value;
}

void set_lynx(Selection& selection, const Setting& setting) {
  if (setting.key == "alpha")
    selection.alpha = number<double>(setting, "a finite number > 0", [](double v) { return std::isfinite(v) && v > 0; });
  else if (setting.key == "beta")
    selection.beta = number<int>(setting, "an integer from 1 to 16", [](int v) { return v >= 1 && v <= kMaxBeta; });
  else if (setting.key == "theta")
    selection.theta = number<double>(setting, "a finite number >= 0", [](double v) { return std::isfinite(v) && v >= 0; });
  else
    invalid(kField, "lynx has no key \"", setting.key, "\"; its keys are alpha, beta, theta");
}

void set_oea(Selection& selection, const Setting& setting) {
  if (setting.key != "k0") invalid(kField, "oea has no key \"", setting.key, "\"; its key is k0");
  selection.k0 = number<int>(setting, "an integer >= 1", [](int v) { return v >= 1; });
}

// The shortest text that reads back as the same number.
std::string shortest(double value) {
  char buffer[32];
  return std::string(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
}

}  // namespace

Selection parse_selection(const std::string& text) {
  const std::string name = text.substr(0, text.find(':'));
  Selection selection;
  if (text.empty() || name == "topk" || name == "off") {
    if (name != text) invalid(kField, name, " has no keys, got \"", text, "\"");
    selection.policy = Policy::kTopk;
  } else if (name == "lynx") {
    selection.policy = Policy::kLynx;
    for (const Setting& setting : parse_settings(text)) set_lynx(selection, setting);
  } else if (name == "oea") {
    selection.policy = Policy::kOea;
    for (const Setting& setting : parse_settings(text)) set_oea(selection, setting);
  } else {
    invalid(kField, "unknown policy \"", name, "\"; the policies are topk, lynx, oea");
  }
  return selection;
}

std::string to_string(const Selection& selection) {
  switch (selection.policy) {
    case Policy::kTopk: return "topk";
    case Policy::kLynx:
      return str_cat("lynx:alpha=", shortest(selection.alpha), ",beta=", selection.beta, ",theta=", shortest(selection.theta));
    case Policy::kOea: return str_cat("oea:k0=", selection.k0);
  }
  fail(ErrorCode::kInternal, kField, "policy ", int(selection.policy), " has no name");
}

}  // namespace lynx_rt
