#include "tiers/residency.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

#include "base/error.h"

namespace lynx_rt {

namespace {

struct Name {
  const char *name, *key;  // of its parameter, "" = none
  ResidencyPolicy policy;
  bool takes_low = true;  // the key miss
};
constexpr Name kNames[] = {{"lfu", "decay", ResidencyPolicy::kLfu},      {"lru", "", ResidencyPolicy::kLru},
                           {"lfru", "", ResidencyPolicy::kLfru},         {"score", "decay", ResidencyPolicy::kScore},
                           {"random", "seed", ResidencyPolicy::kRandom}, {"static", "file", ResidencyPolicy::kStatic},
                           {"none", "", ResidencyPolicy::kNone},         {"hi_lo", "decay", ResidencyPolicy::kHiLo},
                           {"ring", "", ResidencyPolicy::kRing, false},  {"belady", "", ResidencyPolicy::kBelady, false}};

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

namespace {

double number_of(const std::string& key, const std::string& value, const char* expected, double least, double most) {
  double number = 0;
  if (!read_number(value, number) || !(number >= least && number <= most))
    invalid("expert_policy", key, ": expected ", expected, ", got \"", value, "\"");
  return number;
}

int64_t whole_number_of(const std::string& key, const std::string& value, const char* expected, double least) {
  const double number = number_of(key, value, expected, least, 1e15);
  if (number != std::floor(number)) invalid("expert_policy", key, ": expected ", expected, ", got \"", value, "\"");
  return int64_t(number);
}

// Takes key=value. Returns false for a key that the policy has not.
bool set(ResidencyRule& rule, const Name& name, const std::string& key, const std::string& value) {
  const bool hi_lo = rule.policy == ResidencyPolicy::kHiLo;
  if (key.empty() || value.empty()) return false;
  if (key == "miss" && name.takes_low) {
    if (value != "low" && (hi_lo || value != "wait"))
      invalid("expert_policy", "miss: expected ", hi_lo ? "low" : "wait or low", ", got \"", value, "\"");
    rule.low = value == "low";
  } else if (name.takes_low && (key == "full" || key == "skip")) {
    (key == "full" ? rule.full : rule.skip) = number_of(key, value, "a number from 0 to 1", 0, 1);
  } else if (hi_lo && key == "period") {
    rule.period = whole_number_of(key, value, "a whole number from 1 on", 1);
  } else if (hi_lo && key == "inflight") {
    rule.inflight = whole_number_of(key, value, "a whole number from 1 on", 1);
  } else if (hi_lo && key == "hysteresis") {
    rule.hysteresis = number_of(key, value, "a number from 1 on", 1, 1e15);
  } else if (key != name.key) {
    return false;
  } else if (key == "file") {
    rule.file = value;
  } else if (key == "seed") {
    rule.seed = uint64_t(whole_number_of(key, value, "a whole number from 0 on", 0));
  } else {
    rule.decay = number_of(key, value, "a number above 0, at most 1", std::numeric_limits<double>::min(), 1);
  }
  return true;
}

std::string keys_of(const Name& name) {
  if (name.policy == ResidencyPolicy::kHiLo)
    return " with decay=VALUE, period=N, hysteresis=VALUE, inflight=N, full=VALUE, skip=VALUE";
  if (!*name.key) return name.takes_low ? " alone or with miss=low, full=VALUE, skip=VALUE" : " alone";
  return str_cat(" with ", name.key, "=VALUE, miss=low, full=VALUE, skip=VALUE");
}

}  // namespace

ResidencyRule parse_residency(const std::string& text) {
  const size_t colon = text.find(':');
  const std::string wanted = text.substr(0, colon);
  const Name* name = std::find_if(std::begin(kNames), std::end(kNames), [&](const Name& n) { return wanted == n.name; });
  if (name == std::end(kNames))
    invalid("expert_policy", "expected one of ", joined(kNames, [](const Name& n) { return n.name; }), "; got \"", wanted, "\"");
  ResidencyRule rule;
  rule.policy = name->policy;
  rule.low = rule.policy == ResidencyPolicy::kHiLo;
  for (size_t begin = colon; begin != std::string::npos;) {
    const size_t end = text.find(',', begin + 1);
    const std::string part = text.substr(begin + 1, end == std::string::npos ? end : end - begin - 1);
    const size_t equals = part.find('=');
    if (equals == std::string::npos || !set(rule, *name, part.substr(0, equals), part.substr(equals + 1)))
      invalid("expert_policy", "expected ", wanted, keys_of(*name), ", got \"", text, "\"");
    begin = end;
  }
  if (!rule.low && (rule.full >= 0 || rule.skip < 1))
    invalid("expert_policy", "expected full and skip with miss=low alone, got \"", text, "\"");
  if (rule.skip < rule.full)
    invalid("expert_policy", "skip: expected at least full = ", shortest(rule.full), ", got ", shortest(rule.skip));
  return rule;
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
    case ResidencyPolicy::kHiLo:
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
  const bool by_mass = rule_.policy == ResidencyPolicy::kScore, hi_lo = rule_.policy == ResidencyPolicy::kHiLo;
  if (by_mass && mass.size() != wanted.size())
    fail(ErrorCode::kInternal, "", "layer ", index, ": score needs the gate mass of experts");
  const double decay = by_mass || hi_lo || rule_.policy == ResidencyPolicy::kLfu ? rule_.decay : 1;
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
  const int64_t inserted = counts.inserted;
  const bool keeps = !ring && rule_.policy != ResidencyPolicy::kNone && rule_.policy != ResidencyPolicy::kStatic;
  if (hi_lo) {
    // Layers take turns, so that not all reads are asked for in one step.
    if ((layer.step + index) % rule_.period == rule_.period - 1) exchange(layer, quota_[size_t(index)]);
  } else if (keeps && hits < int64_t(used.size())) {
    kept_.clear();
    for (int32_t e = 0; e < int32_t(layer.cost.size()); ++e)
      if (layer.cost[size_t(e)] == 0 || std::binary_search(used.begin(), used.end(), e)) kept_.push_back(e);
    choose(index);
  }
  counts.reads += rule_.low ? counts.inserted - inserted : ring ? int64_t(layer.cost.size()) : int64_t(used.size()) - hits;
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

// Ends the last exchange, whose newcomers are resident from now on, and begins one: experts leave at once, those that come for them are
// being read until the next exchange.
void Residency::exchange(Layer& layer, int64_t quota) {
  for (const int32_t e : layer.coming) layer.cost[size_t(e)] = 0;
  layer.coming.clear();
  std::vector<int32_t> absent, resident;
  for (int32_t e = 0; e < int32_t(layer.cost.size()); ++e) (layer.cost[size_t(e)] == 0 ? resident : absent).push_back(e);
  const auto uses = [&](int32_t e) { return layer.uses[size_t(e)]; };
  std::stable_sort(absent.begin(), absent.end(), [&](int32_t a, int32_t b) { return uses(a) > uses(b); });
  std::stable_sort(resident.begin(), resident.end(), [&](int32_t a, int32_t b) { return uses(a) < uses(b); });
  int64_t places = quota - int64_t(resident.size());
  auto leaver = resident.begin();
  for (const int32_t e : absent) {
    if (int64_t(layer.coming.size()) == rule_.inflight || uses(e) == 0) break;
    if (places > 0) {
      --places;
    } else {
      if (leaver == resident.end() || !(uses(e) > rule_.hysteresis * uses(*leaver))) break;
      layer.cost[size_t(*leaver++)] = 1;
      ++layer.counts.evicted;
    }
    layer.coming.push_back(e);
    ++layer.counts.inserted;
  }
}

}  // namespace lynx_rt
