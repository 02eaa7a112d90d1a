#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lynx_rt {

namespace {

// Returns the theta that makes the longest wave `stretch` times as long (arXiv 2309.00071 section 3.1).
double stretched_theta(const RopeConfig& c, double stretch) {
  return c.theta * std::pow(stretch, double(c.dim) / double(c.dim - 2));
}

// Waves that fit into the original context at least beta_fast times stay; those that fit at most beta_slow times are stretched by
// `factor`; between them is a linear ramp.
void scale_yarn(const RopeConfig& c, std::vector<float>& inverse) {
  const auto pair_of = [&](double rotations) {
    return double(c.dim) * std::log(double(c.original_max_positions) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(c.theta));
  };
  double low = pair_of(c.beta_fast), high = pair_of(c.beta_slow);
  if (c.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, double(c.dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inverse.size(); ++i) {
    const float kept = 1 - std::clamp((float(i) - float(low)) / float(high - low), 0.0f, 1.0f);
    inverse[i] = inverse[i] / float(c.factor) * (1 - kept) + inverse[i] * kept;
  }
}

void scale_llama3(const RopeConfig& c, std::vector<float>& inverse) {
  const float context = float(c.original_max_positions), low = float(c.low_freq_factor), high = float(c.high_freq_factor);
  for (float& f : inverse) {
    const float wavelength = float(2 * std::numbers::pi) / f;
    if (wavelength < context / high) continue;
    const float smooth = wavelength >= context / low ? 0 : (context / wavelength - low) / (high - low);
    f = (1 - smooth) * f / float(c.factor) + smooth * f;
  }
}

double yarn_factor(const RopeConfig& c) {
  if (c.mscale != 0 && c.mscale_all_dim != 0) return yarn_mscale(c.factor, c.mscale) / yarn_mscale(c.factor, c.mscale_all_dim);
  return yarn_mscale(c.factor, 1);
}

double longrope_factor(const RopeConfig& c) {
  return c.factor <= 1 ? 1 : std::sqrt(1 + std::log(c.factor) / std::log(double(c.original_max_positions)));
}

}  // namespace

RopeAngles rope_angles(const RopeConfig& c, int64_t max_positions) {
  double theta = c.theta;
  if (c.kind == RopeKind::kDynamic) {
    const double length = double(std::max(max_positions, c.original_max_positions)) / double(c.original_max_positions);
    theta = stretched_theta(c, c.alpha > 0 ? c.alpha : c.factor * length - (c.factor - 1));
  }
  RopeAngles out;
  for (int64_t i = 0; i < c.dim / 2; ++i) out.inverse.push_back(1.0f / std::pow(float(theta), float(2 * i) / float(c.dim)));

  const bool long_context = max_positions > c.original_max_positions;
  switch (c.kind) {
    case RopeKind::kDefault:
    case RopeKind::kDynamic: break;
    case RopeKind::kLinear:
      for (float& f : out.inverse) f /= float(c.factor);
      break;
    case RopeKind::kProportional:
      for (float& f : out.inverse) f /= float(c.factor);
      std::fill(out.inverse.begin() + c.rotated_pairs, out.inverse.end(), 0.0f);
      break;
    case RopeKind::kYarn:
      scale_yarn(c, out.inverse);
      out.factor = float(c.attention_factor.value_or(yarn_factor(c)));
      break;
    case RopeKind::kLlama3: scale_llama3(c, out.inverse); break;
    case RopeKind::kLongrope: {
      const std::vector<double>& factors = long_context ? c.long_factor : c.short_factor;
      for (size_t i = 0; i < out.inverse.size(); ++i) out.inverse[i] /= float(factors[i]);
      const std::optional<double>& mscale = long_context ? c.long_mscale : c.short_mscale;
      out.factor = float(mscale.value_or(c.attention_factor.value_or(longrope_factor(c))));
      break;
    }
  }
  return out;
}

double yarn_mscale(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1; }

}  // namespace lynx_rt
