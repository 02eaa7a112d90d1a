// What a GGUF file says, in the terms of a Hugging Face checkpoint: so the families read its config and find its tensors as they do in
// config.json and safetensors. Sources: llama.cpp's gguf-py/gguf/{constants,tensor_mapping}.py and convert_hf_to_gguf.py (which key and
// which tensor an architecture has), transformers' modeling_gguf_pytorch_utils.py. Test: tests/checkpoint/test_gguf.py.
#pragma once
#include <map>
#include <string>

#include "checkpoint/gguf.h"

namespace lynx_rt {

// Returns a config.json for the file's metadata. Throws kUnsupported for an architecture that is not read, kCorruptFile for keys that
// are missing or of another type than they should be; both name the key.
Json gguf_config(const GgufFile& file);

// Returns the tensors under their names in a Hugging Face checkpoint. A tensor of all experts of a layer becomes one tensor for each
// expert, which is a part of it. A name that the architecture does not have stays as it is, so that it is reported as unexpected.
std::map<std::string, TensorInfo> gguf_tensors(const GgufFile& file);

}  // namespace lynx_rt
