#include "tiers/residency.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace lynx_rt {

namespace {

struct Name {
  const char *name, *key;  // of its parameter
  ResidencyPolicy policy;
};
constexpr Name kNames[] = {{"lfu", "decay", ResidencyPolicy::kLfu},      {"lru", "", ResidencyPolicy::kLru},
                           {"lfru", "", ResidencyPolicy::kLfru},         {"score", "decay", ResidencyPolicy::kScore},
                           {"random", "seed", ResidencyPolicy::kRandom}, {"static", "file", ResidencyPolicy::kStatic},
                           {"none", "", ResidencyPolicy::kNone},         {"ring", "", ResidencyPolicy::kRing},
                           {"belady", "", ResidencyPolicy::kBelady}};

// Mixes the bits of a number. Source: SplitMix64, Steele, Lea, Flood 2014.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

void expect_experts(const std::vector<int32_t>& experts, int64_t num_experts, bool rising, size_t layer) {
  std::vector<bool> seen(size_t(num_experts), false);
  for (size_t i = 0; i < experts.size(); ++i) {
    const int32_t e = experts[i];
    if (e < 0 || e >= num_experts || seen[size_t(e)] || (rising && i > 0 && e < experts[i - 1]))
      invalid("expert_policy", "layer ", layer, ": expected experts 0..", num_experts - 1, rising ? " in rising order" : "",
              ", each once; got ", e);
    seen[size_t(e)] = true;
  }
}

}  // namespace

ResidencyRule parse_residency(const std::string& text) {
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon), rest = colon == std::string::npos ? "" : text.substr(colon + 1);
  for (const Name& known : kNames) {
    if (name != known.name) continue;
    ResidencyRule rule;
    rule.policy = known.policy;
    if (colon == std::string::npos) return rule;
    const size_t equals = rest.find('=');
    const std::string key = rest.substr(0, equals), value = equals == std::string::npos ? "" : rest.substr(equals + 1);
    if (key != known.key || key.empty() || value.empty())
      invalid("expert_policy", "expected ", name, *known.key ? str_cat(" with ", known.key, "=VALUE") : " alone", ", got \"",
              text, "\"");
    double number = 0;
    if (known.policy == ResidencyPolicy::kStatic) {
      rule.file = value;
    } else if (known.key == std::string_view("decay")) {
      if (!read_number(value, rule.decay) || !(rule.decay > 0 && rule.decay <= 1))
        invalid("expert_policy", "decay: expected a number above 0, at most 1, got \"", value, "\"");
    } else if (!read_number(value, number) || number < 0 || number > 1e15 || number != double(int64_t(number))) {
      invalid("expert_policy", "seed: expected a whole number from 0 on, got \"", value, "\"");
    } else {
      rule.seed = uint64_t(number);
    }
    return rule;
  }
  invalid("expert_policy", "expected one of ", joined(kNames, [](const Name& n) { return n.name; }), "; got \"", name, "\"");
}

std::vector<int64_t> uniform_quota(int64_t slots, int64_t num_layers, int64_t num_experts) {
  std::vector<int64_t> quota;
  for (int64_t l = 0; l < num_layers; ++l)
    quota.push_back(std::min(num_experts, slots / num_layers + (l < slots % num_layers ? 1 : 0)));
  return quota;
}

std::vector<int64_t> quota_of(double residents, int64_t num_layers, int64_t num_experts, const char* field) {
  const bool whole = residents >= 1 && residents <= double(num_experts) && residents == std::floor(residents);
  if (!(residents > 0 && residents < 1) && !whole)
    invalid(field, "expected a share of the experts above 0 and below 1, or a number of them from 1 to ", num_experts, ", got ",
            shortest(residents));
  return std::vector<int64_t>(size_t(num_layers), int64_t(residents < 1 ? residents * double(num_experts) : residents));
}

Residency::Residency(const ResidencyRule& rule, std::vector<int64_t> quota, int64_t num_experts, ExpertHistory lists)
    : rule_(rule), quota_(std::move(quota)), lists_(std::move(lists)), layers_(quota_.size()) {
  const bool lists_needed = rule.policy == ResidencyPolicy::kStatic || rule.policy == ResidencyPolicy::kBelady;
  if (lists_needed && lists_.size() != layers_.size())
    invalid("expert_policy", "expected lists of ", int64_t(layers_.size()), " layers, got ", int64_t(lists_.size()));
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (quota_[l] < 0 || quota_[l] > num_experts)
      invalid("expert_policy", "quota of layer ", l, ": expected 0..", num_experts, ", got ", quota_[l]);
    Layer& layer = layers_[l];
    layer.cost.assign(size_t(num_experts), 1);
    layer.uses.assign(size_t(num_experts), 0);
    layer.last.assign(size_t(num_experts), -1);
    if (!lists_needed) continue;
    for (const auto& experts : lists_[l]) expect_experts(experts, num_experts, rule.policy == ResidencyPolicy::kBelady, l);
    if (rule.policy == ResidencyPolicy::kBelady) {
      layer.steps.resize(size_t(num_experts));
      for (size_t s = 0; s < lists_[l].size(); ++s)
        for (const int32_t e : lists_[l][s]) layer.steps[size_t(e)].push_back(int64_t(s));
    } else if (!lists_[l].empty()) {
      const auto& hot = lists_[l][0];
      for (size_t i = 0; i < std::min(hot.size(), size_t(quota_[l])); ++i) layer.cost[size_t(hot[i])] = 0;
    }
  }
}

// Returns how much is to be said for keeping an expert after the step. Ties go to the later use (lru: to more uses), then to the lower expert.
double Residency::key(const Layer& layer, size_t index, int32_t expert) const {
  const size_t e = size_t(expert);
  switch (rule_.policy) {
    case ResidencyPolicy::kLfu:
    case ResidencyPolicy::kScore: return layer.uses[e];
    case ResidencyPolicy::kLru: return double(layer.last[e]);
    case ResidencyPolicy::kLfru: return layer.uses[e] / double(layer.step - layer.last[e] + 1);
    case ResidencyPolicy::kRandom:
      return double(mix(mix(mix(rule_.seed + index) + uint64_t(layer.step)) + uint64_t(expert)) >> 11);
    case ResidencyPolicy::kBelady: {
      const auto& steps = layer.steps[e];
      const auto next = std::upper_bound(steps.begin(), steps.end(), layer.step);
      return next == steps.end() ? -1e18 : -double(*next);
    }
    default: return 0;
  }
}

void Residency::update(int64_t index, std::span<const int32_t> used, std::span<const int32_t> wanted,
                       std::span<const float> mass) {
  Layer& layer = layers_[size_t(index)];
  if (rule_.policy == ResidencyPolicy::kBelady) {
    const auto& recorded = lists_[size_t(index)];
    if (layer.step >= int64_t(recorded.size()) ||
        !std::equal(wanted.begin(), wanted.end(), recorded[size_t(layer.step)].begin(), recorded[size_t(layer.step)].end()))
      invalid("expert_policy", "belady: step ", layer.step, " of layer ", index, " used other experts than the recording");
  }
  const bool by_mass = rule_.policy == ResidencyPolicy::kScore;
  if (by_mass && mass.size() != wanted.size())
    fail(ErrorCode::kInternal, "", "layer ", index, ": score needs the gate mass of experts");
  const double decay = by_mass || rule_.policy == ResidencyPolicy::kLfu ? rule_.decay : 1;
  for (double& uses : layer.uses) uses *= decay;
  Counts& counts = layer.counts;
  counts.used += int64_t(used.size());
  int64_t hits = 0;
  for (const int32_t e : used) hits += layer.cost[size_t(e)] == 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const size_t e = size_t(wanted[i]);
    layer.uses[e] += by_mass ? double(mass[i]) : 1;
    layer.last[e] = layer.step;
  }
  counts.hits += hits;
  const bool ring = rule_.policy == ResidencyPolicy::kRing;
  counts.reads += ring ? int64_t(layer.cost.size()) : int64_t(used.size()) - hits;
  const bool keeps = !ring && rule_.policy != ResidencyPolicy::kNone && rule_.policy != ResidencyPolicy::kStatic;
  if (keeps && hits < int64_t(used.size())) {
    kept_.clear();
    for (int32_t e = 0; e < int32_t(layer.cost.size()); ++e)
      if (layer.cost[size_t(e)] == 0 || std::binary_search(used.begin(), used.end(), e)) kept_.push_back(e);
    choose(index);
  }
  ++layer.step;
}

void Residency::seed(int64_t index, std::span<const float> uses) {
  Layer& layer = layers_[size_t(index)];
  if (rule_.policy != ResidencyPolicy::kLfu || uses.size() != layer.uses.size())
    fail(ErrorCode::kInternal, "", "layer ", index, ": only lfu takes uses from elsewhere, one number per expert");
  for (size_t e = 0; e < uses.size(); ++e) layer.uses[e] += double(uses[e]);
  kept_.resize(layer.cost.size());
  std::iota(kept_.begin(), kept_.end(), 0);
  choose(index);
}

// Makes the best of kept_ the residents of a layer.
void Residency::choose(int64_t index) {
  Layer& layer = layers_[size_t(index)];
  if (int64_t(kept_.size()) > quota_[size_t(index)]) {
    keys_.resize(layer.cost.size());
    for (const int32_t e : kept_) keys_[size_t(e)] = key(layer, size_t(index), e);
    const auto& second = [&](int32_t e) {
      return rule_.policy == ResidencyPolicy::kLru ? layer.uses[size_t(e)] : double(layer.last[size_t(e)]);
    };
    std::sort(kept_.begin(), kept_.end(), [&](int32_t a, int32_t b) {
      if (keys_[size_t(a)] != keys_[size_t(b)]) return keys_[size_t(a)] > keys_[size_t(b)];
      if (second(a) != second(b)) return second(a) > second(b);
      return a < b;
    });
    kept_.resize(size_t(quota_[size_t(index)]));
  }
  const int64_t before = std::count(layer.cost.begin(), layer.cost.end(), 0);
  int64_t stayed = 0;
  for (const int32_t e : kept_) stayed += layer.cost[size_t(e)] == 0;
  std::fill(layer.cost.begin(), layer.cost.end(), uint8_t(1));
  for (const int32_t e : kept_) layer.cost[size_t(e)] = 0;
  layer.counts.inserted += int64_t(kept_.size()) - stayed;
  layer.counts.evicted += before - stayed;
}

}  // namespace lynx_rt
