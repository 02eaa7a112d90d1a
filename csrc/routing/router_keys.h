// Ranks and weighs the experts of a row, for every kind of router. For a row, an expert has two float32 values:
//   key   experts are chosen, voted for and compared by it; in nats; -inf outside the row's groups
//   gate  the logarithm of the ungated weight: weights are proportional to exp(gate)
// For softmax without bias and groups, and for sparsemixer, both are the logit. Else, with z the logit:
//   gate  softmax: z; sigmoid: log(sigmoid(z))
//   key   without bias the gate. With bias the experts are ranked by c = a + bias, where a is the softmax probability or
//         the sigmoid: key = log(r), r = 1 - (c_best - c) / a_best, "best" being the row's first choice. Real biases share an
//         offset that is large beside a; r does not change with it, and without bias r = a / a_best. r is negative for experts
//         far behind: below 2^-20 the logarithm continues as its tangent, which keeps the order.
//   groups  are ranked by their best c, or the sum of their two best.
// Both are computed in double precision from basic operations. The bits are the same wherever double precision is IEEE and
// products are not contracted.
#pragma once
#include <cstdint>

#include "routing/gate_mass.h"
#include "routing/rule.h"

namespace lynx_rt {

// Whether keys differ from the logits.
LYNX_HOST_DEVICE constexpr bool has_keys(const RouterRule& rule) {
  return rule.kind == RouterKind::kSigmoid || rule.bias || rule.num_groups > 1;
}
// Whether a row's own weights sum to `scale`.
LYNX_HOST_DEVICE constexpr bool is_normalised(const RouterRule& rule) {
  return rule.norm_topk && rule.min_sum == 0 && rule.kind != RouterKind::kSparsemixer;
}

// Returns exp(-gap) for gap >= 0, to a relative error of 2^-38; 0 where it is 2^-1000 or less.
LYNX_HOST_DEVICE inline double exp_negative(double gap) {
  const double power = gap * kLog2E;
  if (!(power < 1000)) return 0;
  int whole = int(power);
  double value = exp_series((whole - power) * kLn2);
  for (; whole >= 32; whole -= 32) value *= 1.0 / (uint64_t{1} << 32);
  return value / double(uint64_t{1} << whole);
}

// Returns log((1 + s) / (1 - s)) for |s| <= 1/3, to a relative error of 2^-40: the series of 2 atanh(s) through s^23.
LYNX_HOST_DEVICE inline double log_quotient(double s) {
  const double q = s * s;
  double p = 1.0 / 23;
  p = p * q + 1.0 / 21;
  p = p * q + 1.0 / 19;
  p = p * q + 1.0 / 17;
  p = p * q + 1.0 / 15;
  p = p * q + 1.0 / 13;
  p = p * q + 1.0 / 11;
  p = p * q + 1.0 / 9;
  p = p * q + 1.0 / 7;
  p = p * q + 1.0 / 5;
  p = p * q + 1.0 / 3;
  p = p * q + 1;
  return 2 * s * p;
}

LYNX_HOST_DEVICE inline double sigmoid(double z) {
  const double e = exp_negative(z < 0 ? -z : z);
  return (z < 0 ? e : 1) / (1 + e);
}

LYNX_HOST_DEVICE inline double log_sigmoid(double z) {
  const double e = exp_negative(z < 0 ? -z : z);
  return (z < 0 ? z : 0) - log_quotient(e / (2 + e));  // log(1 + e)
}

// Returns the key of an expert that is `behind` = c_best - c >= 0 behind the first choice, which has a_best >= 0.
LYNX_HOST_DEVICE inline float choice_key(double behind, double a_best) {
  constexpr double kLeastLog = 1.0 / (1 << 20), kLowest = -3e38;
  const double lost = behind / (a_best > 1e-12 ? a_best : 1e-12);
  if (lost < 0.25) return float(log_quotient(-lost / (2 - lost)));
  double r = 1 - lost;
  if (r < kLeastLog) {
    const double tangent = -20 * kLn2 + (r - kLeastLog) / kLeastLog;
    return float(tangent > kLowest ? tangent : kLowest);
  }
  int halvings = 0;
  for (; r < 0.7; r *= 2) ++halvings;
  return float(log_quotient((r - 1) / (r + 1)) - halvings * kLn2);
}

// The score by which groups are ranked.
struct GroupScore {
  double best = -1e300, second = -1e300;

  LYNX_HOST_DEVICE void add(double c) {
    if (c > best) {
      second = best;
      best = c;
    } else if (c > second) {
      second = c;
    }
  }
  LYNX_HOST_DEVICE double value(bool top2) const { return top2 ? best + second : best; }
};

}  // namespace lynx_rt
