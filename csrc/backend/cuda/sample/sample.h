// Draws each row's next token from its logits, on the device, as TokenDrawer::draw() in backend/sampling.h does. Weights come from
// another exponential function, so a draw whose uniform number is within their rounding of a boundary may differ.
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
  const int32_t* masks;      // [masks, ceil(V / 32)] in device memory, indexed by DrawParams::mask_row
  int32_t* tokens;           // [S] out: the token; -1 where a logit is NaN; -2 where all are -inf
};
void sample(const SampleArgs& args, Stream stream);

}  // namespace lynx_rt::cuda
