// How a GPTQ file stores its zero points.
#pragma once
#include "checkpoint/load_notes.h"
#include "checkpoint/quantization_config.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/weight_problems.h"

namespace lynx_rt {

// Whether zero points are stored less one. The first version of the format (checkpoint_format "gptq") does so and the second does
// not, but there are files of the one that say the other. Where the quantisation is symmetric every zero point is 2^(bits - 1), so
// that the file itself tells: all of its tensors hold that code, or all the one below it; then a warning is added where config.json
// says otherwise, and a contradiction for tensors that are neither. Elsewhere config.json is believed; a stored 2^bits - 1, which
// some readers take for 0 as here and others for 2^bits, is worth a warning. Tensors that do not fit a format are left to
// find_quantized(). Reads all zero points, 1 / (8 * group_size) of the file.
// Test: tests/checkpoint/test_gptq_zeros.py.
bool are_zeros_less_one(const Checkpoint& checkpoint, const QuantizationConfig& config, WeightProblems& problems,
                        LoadNotes& notes);

}  // namespace lynx_rt
