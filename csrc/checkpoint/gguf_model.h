// What a GGUF file says, in the terms of a Hugging Face checkpoint: so the families read its config and find its tensors as they do in
// config.json and safetensors. Sources: llama.cpp's gguf-py/gguf/{constants,tensor_mapping}.py and conversion/ (which key and which
// tensor an architecture has), src/models/ (what llama.cpp assumes where the file says nothing). Test: tests/checkpoint/test_gguf.py.
#pragma once
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "checkpoint/gguf.h"

namespace lynx_rt {

// An architecture of llama.cpp, and how its layers' tensors are named in transformers.
struct GgufArchitecture {
  std::string_view name;              // general.architecture
  std::string_view block = "mlp.";    // in front of the router and the experts of a layer
  std::string_view router = "gate.";  // after the block
  std::string_view experts[3] = {"gate_proj.", "up_proj.", "down_proj."};
  std::string_view shared_expert = "shared_expert.";
  // Names of a layer's tensors, after "blk.N.", that only this architecture has, and what they are after "model.layers.N.".
  std::span<const std::pair<std::string_view, std::string_view>> names = {};
};

// Throws kUnsupported for an architecture that is not read, and for a file that holds something else than a model.
const GgufArchitecture& architecture_of(const GgufFile& file);

// Returns a config.json for the file's metadata. Throws kUnsupported for metadata that may change what the model computes and that are
// not read, kCorruptFile for keys that are missing or of another type than they should be; both name the key.
Json gguf_config(const GgufFile& file);

// Returns the tensors under their names in a Hugging Face checkpoint. A tensor of all experts of a layer becomes one tensor for each
// expert, which is a part of it. A name that is not known stays as it is, so that it is reported as unexpected.
std::map<std::string, TensorInfo> gguf_tensors(const GgufFile& file);

}  // namespace lynx_rt
