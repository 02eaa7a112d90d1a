#include "checkpoint/quantization_config.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "checkpoint/config.h"
#include "checkpoint/json.h"

namespace lynx_rt {

namespace {

constexpr int64_t kMaxBlock = 1 << 24;

[[noreturn]] void unsupported(const ConfigReader& c, const std::string& key, const std::string& value,
                              const std::string& supported) {
  fail(ErrorCode::kUnsupported, key, c.name(), ": ", key, " ", value, " is not supported; supported: ", supported);
}

// Reads the number of inputs that share a scale; -1 means all of them.
int64_t read_group_size(const ConfigReader& c, const std::string& key, int64_t fallback) {
  const int64_t size = c.integer_or(key, fallback, -1, kMaxBlock);
  if (size == 0) c.fail_key(key, "expected -1 or a positive integer, got 0");
  return size == -1 ? 0 : size;
}

std::vector<int64_t> read_block(const ConfigReader& c, const std::string& key) {
  std::vector<int64_t> block = c.integers_or(key, {}, 1, kMaxBlock);
  if (block.size() != 2) c.fail_key(key, str_cat("expected two positive integers, got ", block.size()));
  return block;
}

// The shapes of the scales tell whether they are of blocks, of rows or of the whole tensor.
void read_fp8(const ConfigReader& c, QuantizationConfig& q) {
  const std::string fmt = c.string_or("fmt", "e4m3");
  if (fmt != "e4m3") unsupported(c, "fmt", quote(fmt), "e4m3");
  const std::string experts = c.string_or("expert_dtype", "fp8");
  if (experts != "fp8") unsupported(c, "expert_dtype", quote(experts), "fp8");
  if (c.has("weight_block_size")) {
    const std::vector<int64_t> block = read_block(c, "weight_block_size");
    q.formats.push_back({Encoding::kFloat8, 8, block[0], block[1]});
  }
  q.formats.push_back({Encoding::kFloat8, 8, 1, 0});
  q.formats.push_back({Encoding::kFloat8, 8, 0, 0});
  q.excluded = c.strings_or(c.has("modules_to_not_convert") ? "modules_to_not_convert" : "ignored_layers", {});
}

void read_mxfp4(const ConfigReader& c, QuantizationConfig& q) {
  q.formats.push_back({Encoding::kMxfp4Blocks, 4, 1, 32});
  q.excluded = c.strings_or("modules_to_not_convert", {});
}

int read_gptq_bits(const ConfigReader& c, int fallback) {
  const int64_t bits = c.integer_or("bits", fallback, 1, 32);
  if (bits != 4 && bits != 8) unsupported(c, "bits", std::to_string(bits), "4, 8");
  return int(bits);
}

void read_gptq(const ConfigReader& c, QuantizationConfig& q) {
  c.integer("bits", 1, 32);
  const int bits = read_gptq_bits(c, 4);
  const std::string key = c.has("checkpoint_format") ? "checkpoint_format" : "format";
  const std::string format = c.string_or(key, "gptq");
  if (format != "gptq" && format != "gptq_v2") unsupported(c, key, quote(format), "gptq, gptq_v2");
  if (c.boolean_or("is_marlin_format", false)) unsupported(c, "is_marlin_format", "true", "false");
  const std::string words = c.string_or("pack_dtype", "int32");
  if (words != "int32") unsupported(c, "pack_dtype", quote(words), "int32");
  q.zeros_less_one = format == "gptq";
  if (c.has("sym")) q.symmetric = c.boolean_or("sym", true);
  const int64_t group_size = read_group_size(c, "group_size", 128);
  q.formats.push_back({Encoding::kGptq, bits, 1, group_size, false});
  const std::optional<ConfigReader> dynamic = c.object("dynamic");
  if (!dynamic) return;
  // "-:PATTERN" leaves modules unquantised; any other pattern gives some modules their own settings. The shapes of a module's
  // tensors tell which settings it has, so the patterns (Python's regular expressions, with an order of precedence) need not be
  // matched.
  for (const std::string& pattern : dynamic->keys()) {
    const std::optional<ConfigReader> rule = dynamic->object(pattern);
    if (pattern.starts_with("-:") || !rule) continue;
    for (const char* fixed : {"checkpoint_format", "format", "pack_dtype", "quant_method", "method"})
      if (rule->has(fixed)) unsupported(*rule, fixed, "(for some modules)", "bits, group_size, sym");
    q.formats.push_back({Encoding::kGptq, read_gptq_bits(*rule, bits), 1,
                         rule->has("group_size") ? read_group_size(*rule, "group_size", 128) : group_size, false});
    if (rule->has("sym") && rule->boolean_or("sym", true) != q.symmetric.value_or(true)) q.symmetric = std::nullopt;
  }
}

void read_awq(const ConfigReader& c, QuantizationConfig& q) {
  const std::string bits_key = c.has("w_bit") ? "w_bit" : "bits";
  const int64_t bits = c.integer_or(bits_key, 4, 1, 32);
  if (bits != 4) unsupported(c, bits_key, std::to_string(bits), "4");
  const std::string key = c.has("version") ? "version" : "format";
  std::string version = c.string_or(key, "gemm");
  std::transform(version.begin(), version.end(), version.begin(),
                 [](char ch) { return ch >= 'A' && ch <= 'Z' ? char(ch + 32) : ch; });
  if (version != "gemm") unsupported(c, key, quote(version), "gemm");
  if (!c.boolean_or("zero_point", true)) unsupported(c, "zero_point", "false", "true");
  q.formats.push_back(
      {Encoding::kAwq, 4, 1, read_group_size(c, c.has("q_group_size") ? "q_group_size" : "group_size", 128), false});
  q.excluded = c.strings_or("modules_to_not_convert", {});
}

QuantizedFormat read_weights(const ConfigReader& w, const std::string& format, const std::string& format_name) {
  const int64_t bits = w.integer("num_bits", 1, 64);
  const std::string type = w.string_or("type", "int"), strategy = w.string_or("strategy", "tensor");
  const auto expect = [&](bool ok, const std::string& key, const std::string& value, const std::string& supported) {
    if (!ok) unsupported(w, key, value, supported + " with format " + format_name);
  };
  QuantizedFormat f;
  f.bits = int(bits);
  f.symmetric = w.boolean_or("symmetric", true);
  const bool unpacked = format == "naive-quantized";  // stored as int-quantized or float-quantized, by the type
  const bool is_float = format == "float-quantized" || format == "mxfp4-pack-quantized" || (unpacked && type == "float");
  expect(type == (is_float ? "float" : "int"), "type", quote(type), is_float ? "float" : "int");
  if (is_float) expect(f.symmetric, "symmetric", "false", "true");
  if (format == "pack-quantized") {
    f.encoding = Encoding::kPackedInt;
    expect(bits == 4 || bits == 8, "num_bits", std::to_string(bits), "4, 8");
  } else if (format == "mxfp4-pack-quantized") {
    f.encoding = Encoding::kMxfp4Packed;
    expect(bits == 4, "num_bits", std::to_string(bits), "4");
    const int64_t group = read_group_size(w, "group_size", 32);
    expect(group == 32, "group_size", std::to_string(group), "32");
    f.block_cols = 32;
    return f;
  } else {
    f.encoding = is_float ? Encoding::kFloat8 : Encoding::kInt8;
    expect(is_float ? bits == 8 : bits <= 8, "num_bits", std::to_string(bits), is_float ? "8" : "1 to 8");
    f.bits = 8;  // bits of the element that holds the code
  }
  if (strategy == "tensor") {
    expect(format != "pack-quantized" || f.symmetric, "strategy", quote(strategy) + " without symmetric", "channel, group");
    f.block_rows = 0;
  } else if (strategy == "group") {
    f.block_cols = w.integer("group_size", 1, kMaxBlock);
  } else if (strategy == "block") {
    const std::vector<int64_t> block = read_block(w, "block_structure");
    f.block_rows = block[0];
    f.block_cols = block[1];
  } else {
    expect(strategy == "channel", "strategy", quote(strategy), "tensor, channel, group, block");
  }
  return f;
}

void read_compressed_tensors(const ConfigReader& c, QuantizationConfig& q) {
  constexpr const char* kFormats = "pack-quantized, int-quantized, float-quantized, naive-quantized, mxfp4-pack-quantized";
  if (const auto sparsity = c.object("sparsity_config")) {
    const std::string format = sparsity->string_or("format", "dense");
    if (format != "dense") unsupported(*sparsity, "format", quote(format), "dense");
  }
  if (const auto transforms = c.object("transform_config"); transforms && !transforms->keys().empty())
    unsupported(c, "transform_config", "(not empty)", "none");
  c.has("kv_cache_scheme");  // its scales are not used
  q.excluded = c.strings_or("ignore", {});
  const std::string format_of_all = c.string_or("format", "");
  const std::optional<ConfigReader> groups = c.object("config_groups");
  if (!groups) c.fail_key("config_groups", "missing, expected an object");
  for (const std::string& name : groups->keys()) {
    const std::optional<ConfigReader> group = groups->object(name);
    if (!group) continue;
    const std::string format = group->string_or("format", format_of_all);
    const std::optional<ConfigReader> weights = group->object("weights");
    if (!weights) continue;  // the group quantises activations alone
    const std::string list = kFormats;
    if (format.empty() || ((", " + list + ",").find(", " + format + ",") == std::string::npos))
      unsupported(group->has("format") ? *group : c, "format", quote(format), list);
    q.formats.push_back(read_weights(*weights, format, format));
  }
  if (q.formats.empty()) c.fail_key("config_groups", "expected a group with weights, got none");
}

using Read = void (*)(const ConfigReader& config, QuantizationConfig& out);
constexpr struct {
  const char* name;
  Read read;
} kMethods[] = {{"awq", read_awq},
                {"compressed-tensors", read_compressed_tensors},
                {"fp8", read_fp8},
                {"gptq", read_gptq},
                {"mxfp4", read_mxfp4}};

}  // namespace

std::string describe(const QuantizedFormat& f) {
  const bool mx = f.encoding == Encoding::kMxfp4Blocks || f.encoding == Encoding::kMxfp4Packed;
  std::string text = mx ? "mxfp4" : str_cat(f.encoding == Encoding::kFloat8 ? "float" : "int", f.bits);
  if (f.block_rows == 0) return text + ", one scale";
  if (f.block_rows > 1) return str_cat(text, ", a scale to ", f.block_rows, "x", f.block_cols);
  return f.block_cols == 0 ? text + ", a scale to a row" : str_cat(text, ", a scale to ", f.block_cols, " inputs");
}

std::string QuantizationConfig::description() const {
  std::string text = method;
  for (const QuantizedFormat& f : formats) text += (&f == &formats[0] ? ": " : " or ") + describe(f);
  return text;
}

std::string QuantizationConfig::key() const {
  const char* zeros = symmetric.value_or(true) ? (symmetric ? " symmetric" : "") : " asymmetric";
  return str_cat(description(), zeros, zeros_less_one ? " less one" : "");
}

namespace {

QuantizationConfig read_as(const std::string& method, const ConfigReader& c) {
  QuantizationConfig q;
  q.method = method;
  for (const auto& m : kMethods) {
    if (method != m.name) continue;
    m.read(c, q);
    return q;
  }
  unsupported(c, "quant_method", quote(method), joined(kMethods, [](const auto& m) { return m.name; }));
}

}  // namespace

QuantizationConfig read_quantization_config(const ConfigReader& config) {
  std::optional<ConfigReader> c = config.object("quantization_config");
  if (!c) c = config.object("compression_config");  // older compressed-tensors
  return c ? read_as(c->string("quant_method"), *c) : QuantizationConfig();
}

QuantizationConfig read_quantization_file(const std::string& folder) {
  constexpr std::pair<const char*, const char*> kFiles[] = {{"quantize_config.json", "gptq"}, {"quant_config.json", "awq"}};
  for (const auto& [name, method] : kFiles) {
    const std::filesystem::path path = std::filesystem::path(folder) / name;
    std::error_code error;  // what exists but cannot be read is left to ConfigReader, which says why
    if (std::filesystem::status(path, error).type() == std::filesystem::file_type::not_found) continue;
    const ConfigReader c = ConfigReader::open(path.string());
    QuantizationConfig q = read_as(c.string_or("quant_method", method), c);
    q.source = name;
    return q;
  }
  return {};
}

}  // namespace lynx_rt
