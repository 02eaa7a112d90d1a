// How a GPTQ file stores its zero points.
#pragma once
#include "checkpoint/load_notes.h"
#include "checkpoint/quantization_config.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/weight_problems.h"

namespace lynx_rt {

// Returns whether zero points are stored less one. The first version of the format (checkpoint_format "gptq") stores them so, the
// second does not, and some files of one version say that they are of the other. Symmetric quantisation: every zero point is
// 2^(bits - 1), so the file itself tells, since all of its tensors hold that code, or all hold the one below it. A warning is
// added where config.json says otherwise, a contradiction for tensors that hold neither. Asymmetric quantisation: config.json is
// believed. A stored 2^bits - 1 gets a warning, because some readers take it for 0, as here, and others for 2^bits. Tensors that
// do not fit a format are left to find_quantized(). Reads all zero points, 1 / (8 * group_size) of the file. Test:
// tests/checkpoint/test_gptq_zeros.py.
bool are_zeros_less_one(const Checkpoint& checkpoint, const QuantizationConfig& config, WeightProblems& problems,
                        LoadNotes& notes);

}  // namespace lynx_rt
