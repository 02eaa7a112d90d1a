// Chooses each row's next token from its logits, on the device. The meaning is that of TokenDrawer::draw() in backend/sampling.h;
// sums of probabilities run in another order, so that a draw whose uniform number falls within their rounding of a boundary may
// differ.
#pragma once
#include <cstddef>
#include <cstdint>

#include "backend/cuda/runtime/runtime.h"
#include "backend/sampling.h"

namespace lynx_rt::cuda {

struct SampleArgs {
  const float* logits;       // [S, V]
  const DrawParams* params;  // [S] in device memory
  int num_rows;              // S
  int vocab_size;            // V
  const int32_t* masks;      // [rows, ceil(V / 32)] in device memory: those that DrawParams::mask_row names
  int32_t* tokens;           // [S] out: the token; -1 where a logit is NaN; -2 where all are -inf
};
void sample(const SampleArgs& args, Stream stream);

}  // namespace lynx_rt::cuda
