// Rotary position embedding (arXiv 2104.09864): angles and factors of every kind. They are computed in float32, as in
// transformers' modeling_rope_utils, so that angles at large positions round alike.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace lynx_rt {

// Config key rope_type. arXiv 2306.15595 (linear), 2309.00071 (dynamic, yarn), 2402.13753 (longrope), 2407.21783 (llama3).
// kProportional (Gemma 4): the first rotated_pairs pairs have the angles of kLinear, the others do not turn.
enum class RopeKind : uint8_t { kDefault, kLinear, kDynamic, kYarn, kLongrope, kLlama3, kProportional };

// The comments name config keys, in rope_parameters (transformers 5) or rope_scaling, and the kinds that use them.
struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000;                    // rope_theta
  int64_t dim = 0;                         // rotated columns of a head, even: head_dim * partial_rotary_factor
  bool interleaved = false;                // pairs are columns (2 i, 2 i + 1), not (i, i + dim / 2)
  int64_t rotated_pairs = 0;               // proportional: dim / 2 * partial_rotary_factor; the other pairs stay as they are
  double factor = 1;                       // factor
  double alpha = 0;                        // dynamic (Hunyuan): theta is stretched once and for all; 0 = none
  int64_t original_max_positions = 0;      // original_max_position_embeddings; dynamic: max_position_embeddings
  double beta_fast = 32, beta_slow = 1;    // yarn
  bool truncate = true;                    // yarn
  std::optional<double> attention_factor;  // yarn, longrope: factor of cosines and sines
  double mscale = 0, mscale_all_dim = 0;   // yarn (DeepSeek)
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  std::vector<double> short_factor, long_factor;     // longrope, [dim / 2]
  std::optional<double> short_mscale, long_mscale;   // longrope (Phi-3.5-MoE): instead of attention_factor
};

struct RopeAngles {
  std::vector<float> inverse;  // [dim / 2] radians per position
  float factor = 1;            // of cosines and sines
};

// Returns the angles for sequences of up to max_positions tokens. In transformers, dynamic and longrope change all angles once a
// sequence passes the original length; cached keys would then have old angles. Here a model has the angles of a sequence of
// max_positions tokens throughout.
RopeAngles rope_angles(const RopeConfig& config, int64_t max_positions);

// Returns 0.1 * mscale * ln(factor) + 1; 1 for factor <= 1. DeepSeek multiplies the softmax scale by its square.
double yarn_mscale(double factor, double mscale);

}  // namespace lynx_rt
