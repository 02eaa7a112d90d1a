// What config.json says about quantised weights. Which modules are quantised is decided by the tensors that the file holds; the
// config says how they are to be read. Sources of the keys: transformers' quantization_config, and the formats' own documentation
// (compressed-tensors, AutoGPTQ and GPTQModel, AutoAWQ, DeepSeek-V3, gpt-oss).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lynx_rt {

class ConfigReader;

// How the codes of a quantised weight [N, K] lie in the file; X is the weight's own name, M its module's.
enum class Encoding : uint8_t {
  kFloat8,       // X F8_E4M3 [N, K]
  kInt8,         // X I8 [N, K]
  kPackedInt,    // X_packed I32 [N, K * bits / 32], offset binary (compressed-tensors)
  kMxfp4Packed,  // X_packed U8 [N, K / 2] (compressed-tensors)
  kMxfp4Blocks,  // X_blocks U8 [.., K / 32, 16] (gpt-oss)
  kGptq,         // M.qweight I32 [K * bits / 32, N]
  kAwq,          // M.qweight I32 [K, N / 8], the columns of a word in an order of their own
};

struct QuantizedFormat {
  Encoding encoding = Encoding::kFloat8;
  int bits = 8;
  int64_t block_rows = 1;  // outputs that share a scale, 0 = all
  int64_t block_cols = 0;  // inputs that share a scale, 0 = all
  bool symmetric = true;   // without zero points
};

struct QuantizationConfig {
  std::string method;                          // quant_method; empty where nothing is quantised
  std::string source = "quantization_config";  // the key or file that states the method, for errors
  std::vector<QuantizedFormat> formats;        // the formats that a module may have
  std::vector<std::string> excluded;           // what the config lists as not quantised: modules' names, and patterns
  bool zeros_less_one = false;                 // a zero point is stored less one (GPTQ, first version of the format)
  std::optional<bool> symmetric;               // every zero point is 2^(bits - 1) (GPTQ); nullopt = not stated

  bool empty() const { return method.empty(); }
  std::string description() const;  // "gptq: int4, 128 inputs to a scale"; "" where nothing is quantised
  std::string key() const;          // text that differs where a file would be decoded differently
};

std::string describe(const QuantizedFormat& format);

// Reads config.json. Throws kCorruptFile, naming the key, for what is malformed; kUnsupported, naming key, value and what is
// supported, for methods, formats and settings that cannot be decoded. Test: tests/checkpoint/test_quantized_formats.py.
QuantizationConfig read_quantization_config(const ConfigReader& config);
// Reads <folder>/quantize_config.json (AutoGPTQ) or quant_config.json (AutoAWQ), which older tools write instead of stating the
// quantisation in config.json. Where neither file exists, nothing is quantised.
QuantizationConfig read_quantization_file(const std::string& folder);

}  // namespace lynx_rt
