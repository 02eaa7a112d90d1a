// The arguments of the attention ops (backend.h): what is done to q, k and v before they are stored, and which keys a row sees.
#pragma once
#include <cstdint>

#include "base/tensor.h"

namespace lynx_rt {

struct RopeTable {
  const float* cos;  // [max positions, dim / 2]
  const float* sin;
  int64_t dim = 0;           // rotated columns of a head; 0 = none, even
  bool interleaved = false;  // pairs are columns (2 i, 2 i + 1), not (i, i + dim / 2)
};

// RMSNorm of q and k.
enum class QkNorm : uint8_t {
  kNone,
  kHead,           // over each head, before rope; weights [D]
  kWidth,          // over all heads together, before rope; weights [A * D] and [G * D]
  kHeadAfterRope,  // over each head; weights [D]
  kUnitAfterRope,  // over each head, without weights (Llama 4)
};

// Arguments of qkv_post(): q/k norm, clamping, rotary embedding, KV write.
struct QkvPostArgs {
  // [T, (A + 2 G) * D] in/out: q is normed and rotated in place; k and v are consumed. `gated`: [T, (2 A + 2 G) * D], where the D columns
  // of a query head are followed by D others, which are left alone; then there is no clamping, scaling or QkNorm::kWidth.
  float* qkv;
  int64_t num_heads;  // A
  QkNorm norm = QkNorm::kNone;
  WeightView q_norm, k_norm;  // shapes: see QkNorm
  float eps = 0;
  RopeTable rope;         // rotates the first rope.dim columns of every head of q and k
  bool v_norm = false;    // each head of v is divided by the root of its mean square (+ eps); not clamped (Gemma 4)
  bool v_from_k = false;  // v is k before its norm and rope, whatever the v columns of qkv hold (Gemma 4)
  float clip = 0;         // q, k and v are clamped to +-clip, after the norm before rope; 0 = no clamping
  // Last, q is multiplied by 1 + temperature_scale * log1p(floor((position + 1) / temperature_floor)); 0 = no scaling (Llama 4).
  float temperature_floor = 0, temperature_scale = 0;
  bool gated = false;
};

// Arguments of mla_post(), the counterpart of qkv_post() in multi-head latent attention.
struct MlaPostArgs {
  const float* q;      // [T, A, nope + R]
  float* kv;           // [T, L + R] latent and key columns to rotate; consumed
  int64_t num_heads;   // A
  int64_t nope;        // columns of a query head that are not rotated
  WeightView kv_norm;  // [L]
  float eps;
  RopeTable rope;   // dim = R
  float* latent_q;  // [T, A, L + R] out: the rotated columns of q in the last R of each head; the others are left alone
};

// Arguments of attention(). The query row at position p sees keys max(0, p - window + 1, p / chunk * chunk) .. p, or where it is not
// causal 0 .. the position of its sequence's last row.
struct AttentionArgs {
  const float* q;  // rows of stride q_stride, [A, D]
  int64_t q_stride;
  int64_t num_heads;  // A
  float scale;
  int64_t window = 0;  // 0 = all
  int64_t chunk = 0;   // 0 = none
  WeightView sinks;    // [A] or empty: a logit per head, not scaled, that only enters the softmax's denominator
  bool gated = false;  // q is [A, 2 D], where D = Dv others follow the D columns of a head: out is multiplied by their sigmoid
  bool causal = true;  // false: with neither window nor chunk
};

}  // namespace lynx_rt
