// Text form of policies and plans, and the check of their values against a model.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "routing/selection_text.h"

namespace lynx_rt {
namespace {

// A parameter of a policy: its key, its member in Selection, its range.
struct Parameter {
  const char* key;
  std::variant<double Selection::*, int Selection::*> member;
  double least = 0, most = INFINITY;
  bool above_least = false;  // `least` itself is not allowed
};

struct PolicyText {
  Policy policy;
  const char* name;
  std::vector<Parameter> parameters;
  bool reads_file = false;
};

const Parameter refill{"refill", &Selection::refill, 0, 1}, damp{"damp", &Selection::damp, 0, 1},
    resident{"resident", &Selection::resident, 0, 1000}, alpha{"alpha", &Selection::alpha, 0, INFINITY, true};

// lynx's bins per nat. The more experts share a row's weight, the less does the first of them stand out, and the fewer must be denied for
// the same loss. The law goes through what costs less than a point at 2 of 8, 4 of 32 and 8 of 64 experts: docs/study.md (l).
double default_alpha(int top_k) {
  return top_k > 0 ? std::max(0.01, std::round(100 * 96.0 / top_k / top_k) / 100) : 0;  // two decimals, to be read
}

const std::vector<PolicyText>& policies() {
  static const Parameter beta{"beta", &Selection::beta, 1, 16}, k0{"k0", &Selection::k0, 1},
      budget{"m", &Selection::budget, 0, INFINITY, true};
  static const std::vector<PolicyText> table = {
      {Policy::kTopk, "topk", {resident, refill, damp}},
      {Policy::kLynx, "lynx", {alpha, beta, {"theta", &Selection::theta}, refill, damp, resident}},
      {Policy::kLynxLiteral, "lynx_literal", {alpha, beta, {"lambda", &Selection::lambda}, refill, damp}},
      {Policy::kOea, "oea", {k0, refill, damp, resident}},
      {Policy::kXshare, "xshare", {budget, {"k0", &Selection::k0}, refill, damp, resident}},
      {Policy::kDesVote, "des_vote", {budget, refill, damp, resident}},
      {Policy::kCover, "cover", {{"delta", &Selection::delta}, budget, refill, damp, resident}},
      {Policy::kSere, "sere", {{"s", &Selection::primary, 1}, {"rho", &Selection::rho}}, true},
      {Policy::kSkip, "skip", {{"ratio", &Selection::ratio, 0, 1}}},
      {Policy::kTopJ, "top_j", {{"j", &Selection::j, 1}}},
      {Policy::kDenyRank, "deny_rank", {{"rank", &Selection::rank}}},
      {Policy::kCapacity, "capacity", {{"factor", &Selection::factor, 0, INFINITY, true}}},
      {Policy::kAlias, "alias", {}, true},
      {Policy::kReplay, "replay", {}, true},
  };
  return table;
}

const PolicyText& text_of(Policy policy) {
  for (const PolicyText& p : policies())
    if (p.policy == policy) return p;
  fail(ErrorCode::kInternal, "selection", "policy ", int(policy), " has no name");
}

bool parse_number(std::string_view text, double& value) { return read_number(text, value); }

bool parse_number(std::string_view text, int& value) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

std::string range_text(const Parameter& p) {
  const bool whole = std::holds_alternative<int Selection::*>(p.member);
  const std::string kind = whole ? "an integer" : "a finite number";
  if (p.most < INFINITY) return str_cat(kind, " from ", shortest(p.least), " to ", shortest(p.most));
  return str_cat(kind, p.above_least ? " > " : " >= ", shortest(p.least));
}

bool in_range(const Parameter& p, double v) {
  return std::isfinite(v) && v <= p.most && (p.above_least ? v > p.least : v >= p.least);
}

void set(Selection& selection, const Parameter& p, const PolicySetting& setting, const char* field) {
  const auto store = [&](auto Selection::* member) {
    auto value = selection.*member;
    if (!parse_number(setting.value, value) || !in_range(p, double(value)))
      invalid(field, setting.key, ": expected ", range_text(p), ", got \"", setting.value, "\"");
    selection.*member = value;
  };
  std::visit(store, p.member);
}

bool set_phase(Selection& selection, const PolicySetting& setting, const char* field) {
  if (setting.key != "phase") return false;
  if (setting.value != "decode" && setting.value != "all")
    invalid(field, "phase: expected decode or all, got \"", setting.value, "\"");
  selection.all_phases = setting.value == "all";
  return true;
}

// Parses layers such as "0-1+7".
std::vector<std::pair<int, int>> parse_layers(std::string_view text, const char* field) {
  std::vector<std::pair<int, int>> layers;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('+', begin), text.size());
    const std::string_view item = text.substr(begin, end - begin);
    const size_t dash = std::min(item.find('-'), item.size());
    int first = 0, last = 0;
    const bool ok = parse_number(item.substr(0, dash), first) && first >= 0 &&
                    (dash == item.size() ? (last = first, true) : parse_number(item.substr(dash + 1), last)) && last >= first;
    if (!ok) invalid(field, "layers: expected numbers and ranges like \"0-2+7\", got \"", text, "\"");
    layers.push_back({first, last});
    begin = end + 1;
  }
  return layers;
}

}  // namespace

std::vector<PolicySetting> parse_settings(std::string_view text, const char* field) {
  std::vector<PolicySetting> settings;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view item = text.substr(begin, end - begin);
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos) invalid(field, "expected key=value, got \"", item, "\"");
    const PolicySetting setting{item.substr(0, equals), item.substr(equals + 1)};
    for (const PolicySetting& earlier : settings)
      if (earlier.key == setting.key) invalid(field, "key \"", setting.key, "\" is given twice");
    settings.push_back(setting);
    begin = end + 1;
  }
  return settings;
}

Selection parse_policy(const std::string& text, int top_k, std::string* file, const char* field) {
  const size_t colon = std::min(text.find(':'), text.size());
  std::string name = text.substr(0, colon);
  Selection selection;
  if (text.empty() || name == "off") name = "topk";
  if (name == "top1") name = "top_j";
  if (name == "slo")
    invalid(field, "slo: expected at the beginning of an engine's expert_selection, as in \"slo:tpot_ms=20@0=topk\", got \"",
            text, "\"");
  const auto found = std::find_if(policies().begin(), policies().end(), [&](const PolicyText& p) { return name == p.name; });
  if (found == policies().end())
    invalid(field, "unknown policy \"", name, "\"; the policies are off, ", joined(policies(), [](auto& p) { return p.name; }),
            ", slo");
  selection.policy = found->policy;
  // These defaults differ from those of Selection, which are the published rules; docs/study.md explains them.
  if (selection.policy == Policy::kLynx) selection.alpha = default_alpha(top_k), selection.refill = 0.25, selection.damp = 0.5;
  if (selection.policy == Policy::kLynxLiteral) selection.alpha = 16;
  if (selection.policy == Policy::kCover) selection.budget = 1, selection.refill = 1, selection.damp = 0.7;
  if (selection.policy == Policy::kTopk) selection.damp = 0.5;
  const bool fixed = text.starts_with("off") || text.starts_with("top1");
  if (colon < text.size() && fixed) invalid(field, text.substr(0, colon), " has no keys, got \"", text, "\"");
  if (file) file->clear();
  std::vector<PolicySetting> settings;
  if (colon < text.size()) settings = parse_settings(std::string_view(text).substr(colon + 1), field);
  for (const PolicySetting& setting : settings) {
    const auto parameter = std::find_if(found->parameters.begin(), found->parameters.end(),
                                        [&](const Parameter& p) { return setting.key == p.key; });
    if (parameter != found->parameters.end()) {
      set(selection, *parameter, setting, field);
    } else if (found->reads_file && setting.key == "file") {
      if (file) *file = setting.value;
    } else if (!set_phase(selection, setting, field)) {
      std::string keys = joined(found->parameters, [](auto& p) { return p.key; });
      for (const char* key : {found->reads_file ? "file" : "", "phase"})
        if (*key) keys += (keys.empty() ? "" : ", ") + std::string(key);
      invalid(field, name, " has no key \"", setting.key, "\"; its keys are ", keys);
    }
  }
  if (selection.budget >= 1 && selection.budget != std::floor(selection.budget))
    invalid(field, "m: expected a share of the experts below 1, or a whole number, got ", shortest(selection.budget));
  if (selection.policy == Policy::kTopk && is_per_row(selection))
    selection = {};  // the model's own routing, which has no parameters
  return selection;
}

std::string to_string(const Selection& selection, const std::string& file) {
  const PolicyText& policy = text_of(selection.policy);
  std::string text = policy.name;
  auto add = [&, separator = ":"](std::string_view key, const std::string& value) mutable {
    text += str_cat(separator, key, "=", value);
    separator = ",";
  };
  if (selection.policy == Policy::kTopk && is_per_row(selection)) return text;
  const bool shows_all =
      selection.policy == Policy::kCover || selection.policy == Policy::kLynx || selection.policy == Policy::kTopk;
  const auto text_of_number = [](auto value) {
    if constexpr (std::is_integral_v<decltype(value)>) return std::to_string(value);
    return shortest(double(value));
  };
  for (const Parameter& p : policy.parameters) {
    const bool weighs = p.member == refill.member || p.member == damp.member;
    const std::string value = std::visit([&](auto member) { return text_of_number(selection.*member); }, p.member);
    const bool optional = p.member == resident.member || p.member == alpha.member || (weighs && !shows_all);
    if (!optional || value != "0") add(p.key, value);
  }
  if (!file.empty()) add("file", file);
  if (selection.all_phases) add("phase", "all");
  return text;
}

void check_selection(const Selection& s, int num_experts, int top_k, const char* field) {
  const auto check = [&](const char* key, int64_t value, int64_t least, int64_t most, const char* what) {
    if (value < least || value > most) invalid(field, key, ": expected ", least, "..", most, " (", what, "), got ", value);
  };
  constexpr const char* kPerToken = "experts per token of this model";
  const Policy p = s.policy;
  if (s.resident > 0 && !has_resident(p))
    invalid(field, "resident: expected 0 with ", text_of(p).name, ", got ", shortest(s.resident));
  if (p == Policy::kOea || p == Policy::kXshare) check("k0", s.k0, p == Policy::kOea, top_k, kPerToken);
  if (p == Policy::kSere) check("s", s.primary, 1, top_k, kPerToken);
  if (p == Policy::kTopJ) check("j", s.j, 1, top_k, kPerToken);
  if (p == Policy::kDenyRank) check("rank", s.rank, 0, top_k - 1, "ranks of this model's choices");
  if (p == Policy::kXshare || p == Policy::kDesVote || p == Policy::kCover)
    check("m", s.budget < 1 ? 1 : int64_t(std::min(s.budget, 1e9)), 1, num_experts, "experts of this model");
  if (p == Policy::kLynx || p == Policy::kLynxLiteral) check("beta", s.beta, 1, 16, "bins that vote");
  if (p == Policy::kLynx && !(s.alpha > 0)) invalid(field, "alpha: expected more than 0, got ", shortest(s.alpha));
}

const SelectionPlan::Part& SelectionPlan::of_layer(int layer) const {
  for (size_t i = parts.size() - 1; i > 0; --i)
    for (const auto& [first, last] : parts[i].layers)
      if (layer >= first && layer <= last) return parts[i];
  return parts[0];
}

SelectionPlan parse_selection(const std::string& text, int top_k, const char* field) {
  SelectionPlan plan;
  size_t begin = 0;
  for (size_t i = 0; begin <= text.size(); ++i) {
    const size_t end = std::min(text.find('@', begin), text.size());
    std::string part = text.substr(begin, end - begin);
    if (i > 0) {
      const size_t equals = part.find('=');
      if (equals == std::string::npos) invalid(field, "expected LAYERS=POLICY after \"@\", got \"", part, "\"");
      plan.parts.push_back({parse_layers(std::string_view(part).substr(0, equals), field), {}, ""});
      part.erase(0, equals + 1);
      if (part.empty()) invalid(field, "expected a policy after \"=\" of \"", text, "\", got none");
    }
    plan.parts.back().selection = parse_policy(part, top_k, &plan.parts.back().file, field);
    begin = end + 1;
  }
  return plan;
}

std::string to_string(const SelectionPlan& plan) {
  std::string text;
  for (const SelectionPlan::Part& part : plan.parts) {
    std::string layers;
    for (const auto& [first, last] : part.layers)
      layers += (layers.empty() ? "@" : "+") + (first == last ? str_cat(first) : str_cat(first, "-", last));
    text += layers + (layers.empty() ? "" : "=") + to_string(part.selection, part.file);
  }
  return text;
}

}  // namespace lynx_rt
