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
  } else if (policy == "topk" || policy == "cover") {
    for (const char* nats : {"0.25", "0.5", "0.75", "1", "1.5", "2", "3"}) levels.push_back(str_cat(policy, ":resident=", nats));
  } else {
    invalid(kField, "slo: policy: expected lynx, oea, topk or cover, got \"", policy, "\"");
  }
  return levels;
}

// Fills the shares of levels that have not been used. Such a level is assumed to take as little as the next stronger one that has been;
// so it is tried once, at the price of a slow step. Beyond the strongest level used, the share is assumed to fall by a tenth per level.
void guess(std::vector<double>& shares, const std::vector<bool>& measured) {
  for (size_t i = 1; i < shares.size(); ++i)
    if (!measured[i]) shares[i] = 0.9 * shares[i - 1];
  for (size_t i = shares.size() - 1; i > 0; --i)
    if (!measured[i - 1] && std::find(measured.begin() + int64_t(i), measured.end(), true) != measured.end())
      shares[i - 1] = shares[i];
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
    : target_(target_seconds), share_(size_t(num_levels), 1), miss_share_(share_), measured_(size_t(num_levels)) {
  measured_[0] = true;
  guess(share_, measured_);
  guess(miss_share_, measured_);
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
  r.seconds_per_miss = misses_ > 0 ? waited_ / misses_ : 0;
  return r;
}

void Governor::fit(const Step& s) {
  const double computing = std::max(0.0, s.seconds - s.wait_seconds);
  weight_ = kKeep * weight_ + 1;
  n_ = kKeep * n_ + s.active;
  t_ = kKeep * t_ + computing;
  nn_ = kKeep * nn_ + s.active * s.active;
  nt_ = kKeep * nt_ + s.active * computing;
  misses_ = kKeep * misses_ + s.misses;
  waited_ = kKeep * waited_ + s.wait_seconds;
  prior_ += (computing * s.expert_share / std::max(s.active, 1.0) - prior_) / weight_;
  const double n = n_ / weight_, t = t_ / weight_;
  const double variance = std::max(0.0, nn_ / weight_ - n * n), covariance = nt_ / weight_ - n * t;
  // The pull weighs as much as a spread of a tenth in n: with a smaller spread, the slope is mostly noise.
  const double pull = 0.01 * n * n;
  b_ = std::max(0.0, (covariance + pull * prior_) / (variance + pull));
  c0_ = t - b_ * n;
}

// Moves the current level's share towards that of a step.
void Governor::learn_share(std::vector<double>& shares, double part, double whole) {
  if (whole <= 0) return;
  double& share = shares[size_t(level_)];
  share = measured_[size_t(level_)] ? kKeep * share + (1 - kKeep) * part / whole : part / whole;
}

double Governor::expected_seconds(int level) const {
  const double per_miss = misses_ > 0 ? waited_ / misses_ : 0;
  return c0_ + b_ * share_[size_t(level)] * union_ + per_miss * miss_share_[size_t(level)] * union_misses_;
}

void Governor::observe(const Step& s) {
  ++report_.steps_at_level[size_t(level_)];
  report_.steps_over_target += s.seconds > target_;
  if (s.union_before <= 0) return;
  fit(s);
  union_ += (s.union_before - union_) / weight_;
  union_misses_ += (s.misses_before - union_misses_) / weight_;
  if (level_ > 0) {
    learn_share(share_, s.active, s.union_before);
    learn_share(miss_share_, s.misses, s.misses_before);
    measured_[size_t(level_)] = true;
    guess(share_, measured_);
    guess(miss_share_, measured_);
  }
  const int last = int(share_.size()) - 1;
  int next = 0;
  while (next < last && expected_seconds(next) > target_ * (next < level_ ? kMargin : 1)) ++next;
  level_ = next;
}

}  // namespace lynx_rt
