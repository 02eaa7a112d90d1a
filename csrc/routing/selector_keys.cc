// Keys and gates of routers whose keys are not the logits; router_keys.h defines them.
#include <algorithm>
#include <cmath>

#include "routing/router_keys.h"
#include "routing/selector_batch.h"

namespace lynx_rt {

namespace {

// Returns a sum in the order in which a warp adds, so that a device gets the same bits: lane l adds every 32nd term from l on,
// then lanes add in pairs.
double sum_as_warp(const double* values, int count) {
  double lane[32] = {};
  for (int i = 0; i < count; ++i) lane[i % 32] += values[i];
  for (int bit = 16; bit > 0; bit /= 2)
    for (int l = 0; l < bit; ++l) lane[l] += lane[l + bit];
  return lane[0];
}

}  // namespace

void Selector::make_keys(const float* scores, int64_t num_rows, const RouterRule& rule) {
  const int num_experts = rule.num_experts;
  const bool sigmoids = rule.kind == RouterKind::kSigmoid, limited = rule.num_groups > 1;
  for (int64_t t = 0; t < num_rows; ++t) {
    const float* z = scores + t * num_experts;
    float *keys = keys_.data() + t * num_experts, *gates = gates_.data() + t * num_experts;
    for (int e = 0; e < num_experts; ++e) gates[e] = sigmoids ? float(log_sigmoid(z[e])) : z[e];
    std::copy_n(gates, num_experts, keys);
    if (!rule.bias && !limited) continue;

    double *a = ungated_.data(), *c = choice_.data();
    if (sigmoids) {
      for (int e = 0; e < num_experts; ++e) a[e] = sigmoid(z[e]);
    } else {
      const double best = *std::max_element(z, z + num_experts);
      for (int e = 0; e < num_experts; ++e) a[e] = exp_negative(best - z[e]);
      const double sum = sum_as_warp(a, num_experts);
      for (int e = 0; e < num_experts; ++e) a[e] /= sum;
    }
    for (int e = 0; e < num_experts; ++e) c[e] = rule.bias ? a[e] + double(rule.bias[e]) : a[e];
    open_groups(rule);
    const int group_size = num_experts / rule.num_groups;
    int first = -1;
    for (int e = 0; e < num_experts; ++e)
      if (open_[size_t(e / group_size)] && (first < 0 || c[e] > c[first])) first = e;
    for (int e = 0; e < num_experts; ++e) {
      if (!open_[size_t(e / group_size)])
        keys[e] = -INFINITY;
      else if (rule.bias)
        keys[e] = choice_key(c[first] - c[e], a[first]);
    }
  }
}

// Sets open_ to 1 for the row's best groups, by choice_; ties to the lower group.
void Selector::open_groups(const RouterRule& rule) {
  const int group_size = rule.num_experts / rule.num_groups;
  for (int g = 0; g < rule.num_groups; ++g) {
    GroupScore score;
    for (int e = g * group_size; e < (g + 1) * group_size; ++e) score.add(choice_[size_t(e)]);
    group_score_[size_t(g)] = score.value(rule.group_top2);
  }
  for (int g = 0; g < rule.num_groups; ++g) {
    int before = 0;
    for (int other = 0; other < rule.num_groups; ++other)
      before += group_score_[size_t(other)] > group_score_[size_t(g)] ||
                (group_score_[size_t(other)] == group_score_[size_t(g)] && other < g);
    open_[size_t(g)] = before < rule.top_groups;
  }
}

}  // namespace lynx_rt
