// Decodes rows of GGUF's element types. A row is blocks, one after the other; a block has its own scales. The formulas are those of
// ggml's dequantize_row_*() (ggml-quants.c), whose float32 operations are kept in their order. Test: tests/checkpoint/test_gguf.py.
#pragma once
#include <cstdint>
#include <optional>

#include "base/blocks.h"
#include "checkpoint/gguf.h"

namespace lynx_rt {

// Decodes `values` values, whole blocks, at `from` into float32.
using DecodeBlocks = void (*)(const uint8_t* from, int64_t values, float* out);

// Returns the decoder of a type; null for a type that is not decoded. Those that are: F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K,
// MXFP4, IQ4_NL, IQ4_XS.
DecodeBlocks decoder_of(const GgufType& type);

// Returns the rows of a tensor as they lie in the file; nullopt for a type that is not a BlockCode.
std::optional<BlockRows> rows_in_blocks(const GgufType& type, const TensorInfo& info);

}  // namespace lynx_rt
