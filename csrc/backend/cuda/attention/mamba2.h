// Mamba2 and the short convolution. Contracts: Backend::mamba2(), Backend::short_conv(). Sequences that only pad a batch to the size of a
// graph have slot -1: their rows get zeros, and no state is touched. The order of the arithmetic is that of gated_delta.h.
#pragma once
#include <cstdint>

#include "backend/backend.h"
#include "backend/cuda/runtime/runtime.h"

namespace lynx_rt::cuda {

// Pointers are to device memory; weights are float32. `rounded`: null, or [T, padded_columns(columns of out)].
struct StateRows {
  StateView states;
  const int32_t* query_start;  // [S + 1]
  const int32_t* slots;        // [S]
  int num_rows, num_seqs;
  float* out;
  uint16_t* rounded;  // bf16 of out, or null
};
// Throws kUnsupported for states of more than kMaxDeltaKeyDim rows.
void mamba2(const Mamba2Args& args, const StateRows& rows, Stream stream);
void short_conv(const ShortConvArgs& args, const StateRows& rows, Stream stream);

}  // namespace lynx_rt::cuda
