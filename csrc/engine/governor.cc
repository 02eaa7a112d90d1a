#include "engine/governor.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/error.h"
#include "routing/selection_text.h"

namespace lynx_rt {

namespace {

constexpr const char* kField = "expert_selection";
constexpr double kKeep = 0.95;    // factor of older weights per step: about the last twenty steps count
constexpr double kMargin = 0.97;  // share of the target for a weaker level, so that levels do not alternate

std::vector<std::string> levels_of(std::string_view policy, int top_k) {
  std::vector<std::string> levels = {"topk"};
  if (policy == "lynx") {
    for (const char* alpha : {"1", "2", "3", "4", "6", "8", "16"}) levels.push_back(str_cat("lynx:alpha=", alpha));
  } else if (policy == "oea") {
    for (int k0 = top_k - 1; k0 >= 1; --k0) levels.push_back(str_cat("oea:k0=", k0));
  } else {
    invalid(kField, "slo: policy: expected lynx or oea, got \"", policy, "\"");
  }
  return levels;
}

}  // namespace

bool is_slo(const std::string& text) { return text == "slo" || text.starts_with("slo:") || text.starts_with("slo@"); }

SloPlan parse_slo(const std::string& text, int top_k) {
  const size_t at = std::min(text.find('@'), text.size());
  const std::string_view layers = std::string_view(text).substr(at);
  const std::string_view settings = std::string_view(text).substr(0, at).substr(std::min<size_t>(4, at));
  double milliseconds = 0;
  std::string policy = "lynx";
  for (const PolicySetting& setting : settings.empty() ? std::vector<PolicySetting>{} : parse_settings(settings, kField)) {
    const std::string_view value = setting.value;
    if (setting.key == "tpot_ms") {
      if (!read_number(value, milliseconds) || !std::isfinite(milliseconds) || milliseconds <= 0)
        invalid(kField, "slo: tpot_ms: expected milliseconds > 0, got \"", value, "\"");
    } else if (setting.key == "policy") {
      policy = value;
    } else {
      invalid(kField, "slo has no key \"", setting.key, "\"; its keys are tpot_ms, policy");
    }
  }
  if (milliseconds == 0) invalid(kField, "slo: expected tpot_ms, the milliseconds that a token may take");
  SloPlan plan;
  plan.target_seconds = milliseconds / 1000;
  plan.levels = levels_of(policy, top_k);
  for (std::string& level : plan.levels) level += layers;
  plan.text = str_cat("slo:tpot_ms=", shortest(milliseconds), ",policy=", policy, layers);
  return plan;
}

Governor::Governor(double target_seconds, int num_levels)
    : target_(target_seconds), share_(size_t(num_levels), 1), measured_(size_t(num_levels)) {
  measured_[0] = true;
  guess_shares();
  reset_report();
}

void Governor::reset_report() {
  report_ = Report{};
  report_.target_seconds = target_;
  report_.steps_at_level.assign(share_.size(), 0);
}

Governor::Report Governor::report() const {
  Report r = report_;
  r.level = level_;
  r.fixed_seconds = c0_;
  r.seconds_per_expert = b_;
  return r;
}

void Governor::fit(const Step& s) {
  weight_ = kKeep * weight_ + 1;
  n_ = kKeep * n_ + s.active;
  t_ = kKeep * t_ + s.seconds;
  nn_ = kKeep * nn_ + s.active * s.active;
  nt_ = kKeep * nt_ + s.active * s.seconds;
  prior_ += (s.seconds * s.expert_share / std::max(s.active, 1.0) - prior_) / weight_;
  const double n = n_ / weight_, t = t_ / weight_;
  const double variance = std::max(0.0, nn_ / weight_ - n * n), covariance = nt_ / weight_ - n * t;
  // The pull weighs as much as a spread of a tenth in n: with a smaller spread, the slope is mostly noise.
  const double pull = 0.01 * n * n;
  b_ = std::max(0.0, (covariance + pull * prior_) / (variance + pull));
  c0_ = t - b_ * n;
}

// A level that has not been used is assumed to read as little as the next stronger one that has; so it is tried once, at the
// price of a slow step. Beyond the strongest level used, the share is assumed to fall by a tenth per level.
void Governor::guess_shares() {
  for (size_t i = 1; i < share_.size(); ++i)
    if (!measured_[i]) share_[i] = 0.9 * share_[i - 1];
  for (size_t i = share_.size() - 1; i > 0; --i)
    if (!measured_[i - 1] && std::find(measured_.begin() + int64_t(i), measured_.end(), true) != measured_.end())
      share_[i - 1] = share_[i];
}

double Governor::expected_seconds(int level) const { return c0_ + b_ * share_[size_t(level)] * union_; }

void Governor::observe(const Step& s) {
  ++report_.steps_at_level[size_t(level_)];
  report_.steps_over_target += s.seconds > target_;
  if (s.union_before <= 0) return;
  fit(s);
  union_ += (s.union_before - union_) / weight_;
  if (level_ > 0) {
    double& share = share_[size_t(level_)];
    const double found = s.active / s.union_before;
    share = measured_[size_t(level_)] ? kKeep * share + (1 - kKeep) * found : found;
    measured_[size_t(level_)] = true;
    guess_shares();
  }
  const int last = int(share_.size()) - 1;
  int next = 0;
  while (next < last && expected_seconds(next) > target_ * (next < level_ ? kMargin : 1)) ++next;
  level_ = next;
}

}  // namespace lynx_rt
