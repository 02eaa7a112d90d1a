#include "checkpoint/quantized_tensor.h"

#include <algorithm>
#include <string>

#include "checkpoint/kv_cache_scales.h"
#include "checkpoint/tensor_values.h"

namespace lynx_rt {

namespace {

using Shape = std::vector<int64_t>;

// Looks up the tensors of one weight, and notes what is wrong with them.
class Finder {
 public:
  Finder(const Checkpoint& checkpoint, const QuantizationConfig& config, const std::string& name, const Shape& shape,
         std::set<std::string_view>& used, WeightProblems& problems)
      : checkpoint_(checkpoint), config_(config), name_(name), shape_(shape), used_(used), problems_(problems) {
    constexpr std::string_view kWeight = ".weight";
    const bool of_module = name.ends_with(kWeight);
    module_ = of_module ? name.substr(0, name.size() - kWeight.size()) : name;
    sibling_ = of_module ? module_ + "." : name + "_";
    lead_.assign(shape.begin(), shape.end() - 2);
    for (const int64_t d : lead_) t_.matrices *= d;
    t_.rows = shape[shape.size() - 2];
    t_.cols = shape.back();
    t_.zeros_less_one = config.zeros_less_one;
  }

  std::optional<QuantizedTensor> find() {
    std::string codes_name;
    const std::optional<Encoding> encoding = detect(codes_name);
    if (!encoding) return std::nullopt;
    t_.codes = take(codes_name);
    std::vector<QuantizedFormat> formats;
    for (const QuantizedFormat& f : config_.formats)
      if (f.encoding == *encoding) formats.push_back(f);
    if (formats.empty()) {
      const std::string config = config_.empty() ? "no quantization_config" : config_.source + " " + config_.description();
      if (codes_name == name_) {
        problems_.add_wrong_dtype(name_, "F32, BF16 or F16 with " + config, *t_.codes);
      } else {
        problems_.add_contradiction(codes_name, "holds " + t_.codes->dtype + " codes, but config.json has " + config);
      }
      return t_;
    }
    if (std::find(config_.excluded.begin(), config_.excluded.end(), module_) != config_.excluded.end())
      problems_.add_contradiction(codes_name,
                                  "is quantised, but " + config_.source + " lists " + quote(module_) + " as not quantised");
    find_parts(codes_name, formats);
    return t_;
  }

 private:
  // Returns the tensor of that name and marks it as used; null where there is none.
  const TensorInfo* take(const std::string& name) {
    const auto it = checkpoint_.tensors().find(name);
    if (it == checkpoint_.tensors().end()) return nullptr;
    used_.insert(it->first);
    return &it->second;
  }

  std::optional<Encoding> detect(std::string& codes_name) const {
    const auto dtype_of = [&](const std::string& name) {
      codes_name = name;
      return checkpoint_.has(name) ? std::string_view(checkpoint_.at(name).dtype) : std::string_view();
    };
    if (const std::string_view dtype = dtype_of(name_); !dtype.empty()) {
      if (dtype == "F8_E4M3") return Encoding::kFloat8;
      if (dtype == "I8") return Encoding::kInt8;
      return std::nullopt;
    }
    if (const std::string_view dtype = dtype_of(name_ + "_packed"); !dtype.empty())
      return dtype == "U8" ? Encoding::kMxfp4Packed : Encoding::kPackedInt;
    if (!dtype_of(name_ + "_blocks").empty()) return Encoding::kMxfp4Blocks;
    if (shape_.size() == 2 && module_ != name_ && !dtype_of(module_ + ".qweight").empty())
      return config_.method == "awq" ? Encoding::kAwq : Encoding::kGptq;
    return std::nullopt;
  }

  Shape with_lead(std::initializer_list<int64_t> dims) const {
    Shape shape = lead_;
    shape.insert(shape.end(), dims);
    return shape;
  }

  Shape codes_shape(const QuantizedFormat& f) const {
    const int64_t n = t_.rows, k = t_.cols, per_word = 32 / f.bits;
    switch (f.encoding) {
      case Encoding::kFloat8:
      case Encoding::kInt8: return shape_;
      case Encoding::kPackedInt: return with_lead({n, ceil_div(k, per_word)});
      case Encoding::kMxfp4Packed: return with_lead({n, ceil_div(k, 2)});
      case Encoding::kMxfp4Blocks: return with_lead({n, ceil_div(k, 32), 16});
      case Encoding::kGptq: return {ceil_div(k, per_word), n};
      case Encoding::kAwq: return {k, ceil_div(n, per_word)};
    }
    return {};
  }

  int64_t scale_rows(const QuantizedFormat& f) const { return f.block_rows ? ceil_div(t_.rows, f.block_rows) : 1; }
  int64_t scale_cols(const QuantizedFormat& f) const { return f.block_cols ? ceil_div(t_.cols, f.block_cols) : 1; }
  Shape scale_shape(const QuantizedFormat& f) const {
    return transposed(f) ? Shape{scale_cols(f), scale_rows(f)} : with_lead({scale_rows(f), scale_cols(f)});
  }
  static bool transposed(const QuantizedFormat& f) { return f.encoding == Encoding::kGptq || f.encoding == Encoding::kAwq; }

  // Scales may also be stored without the trailing dimensions of size 1.
  bool is_scale_shape(const QuantizedFormat& f, const Shape& found) const {
    if (found == scale_shape(f)) return true;
    if (transposed(f) || scale_cols(f) != 1) return false;
    return found == with_lead({scale_rows(f)}) || (scale_rows(f) == 1 && found == lead_);
  }

  // Some files with block scales have a larger grid than the weight needs.
  bool is_padded_scale(const QuantizedFormat& f, const Shape& found) const {
    const Shape needed = scale_shape(f);
    if (f.encoding != Encoding::kFloat8 || f.block_rows == 0 || f.block_cols == 0 || found.size() != needed.size()) return false;
    for (size_t i = 0; i < found.size(); ++i)
      if (found[i] < needed[i] || (i < lead_.size() && found[i] != needed[i])) return false;
    return true;
  }

  void find_parts(const std::string& codes_name, const std::vector<QuantizedFormat>& formats) {
    const Encoding encoding = formats[0].encoding;
    std::string scale_name = name_ + "_scale";
    if (transposed(formats[0])) scale_name = module_ + ".scales";
    if (encoding == Encoding::kMxfp4Blocks) scale_name = name_ + "_scales";
    if (encoding == Encoding::kFloat8 && !checkpoint_.has(scale_name)) {
      const bool plural = !checkpoint_.has(name_ + "_scale_inv") && checkpoint_.has(name_ + "_scales_inv");
      if (config_.method == "fp8") scale_name = name_ + (plural ? "_scales_inv" : "_scale_inv");
    }
    t_.scale = take(scale_name);
    t_.scale_name = scale_name;
    if (!t_.scale) problems_.add_missing(scale_name);
    choose_format(formats);
    if (t_.codes->shape != codes_shape(t_.format))
      problems_.add_wrong_shape(codes_name, str_cat(codes_shape(t_.format)), *t_.codes);
    const bool bytes = encoding == Encoding::kMxfp4Packed || encoding == Encoding::kMxfp4Blocks;
    if (encoding != Encoding::kFloat8 && encoding != Encoding::kInt8) check_dtype(codes_name, *t_.codes, {bytes ? "U8" : "I32"});
    if (t_.scale) check_scale(scale_name);
    if (encoding == Encoding::kPackedInt) check_stored_shape();
    if (t_.format.symmetric) {
      take_neutral_zeros();
    } else {
      find_zeros();
    }
    if (encoding == Encoding::kPackedInt) find_group_index(name_ + "_g_idx");
    if (encoding == Encoding::kGptq) find_group_index(module_ + ".g_idx");
    if (encoding == Encoding::kGptq) take_zero_bias();
    // Scales of quantised activations are not used, since activations are not quantised here.
    for (const char* unused : {"input_scale", "input_zero_point", "input_global_scale", "activation_scale", "output_scale",
                               "output_zero_point", "output_global_scale"})
      if (!is_kv_cache_scale(sibling_ + unused)) take(sibling_ + unused);  // KV cache scales are counted in weights.cc
  }

  std::string zeros_name() const { return transposed(t_.format) ? module_ + ".qzeros" : name_ + "_zero_point"; }

  // Chooses the format that fits the shapes, and has zero points where the file has some. Where none fits, the first one stays,
  // for the error.
  void choose_format(const std::vector<QuantizedFormat>& formats) {
    t_.format = formats[0];
    const bool with_zeros = checkpoint_.has(zeros_name());
    const auto choose = [&](auto fits) {
      const auto ok = [&](const QuantizedFormat& f) { return t_.codes->shape == codes_shape(f) && (!t_.scale || fits(f)); };
      auto it = std::find_if(formats.begin(), formats.end(),
                             [&](const QuantizedFormat& f) { return f.symmetric != with_zeros && ok(f); });
      if (it == formats.end()) it = std::find_if(formats.begin(), formats.end(), ok);
      if (it != formats.end()) t_.format = *it;
      return it != formats.end();
    };
    const bool exact = choose([&](const QuantizedFormat& f) { return is_scale_shape(f, t_.scale->shape); });
    if (!exact) choose([&](const QuantizedFormat& f) { return is_padded_scale(f, t_.scale->shape); });
    // The shapes of a narrow weight may fit formats of several widths or group sizes.
    for (const QuantizedFormat& f : formats)
      if (exact && t_.scale && f.symmetric == t_.format.symmetric && !reads_alike(f) && t_.codes->shape == codes_shape(f) &&
          is_scale_shape(f, t_.scale->shape))
        return problems_.add_contradiction(name_,
                                           "fits " + describe(t_.format) + " and " + describe(f) + " of " + config_.source);
  }

  // Returns whether this weight decodes to the same values in format `f` as in the chosen one.
  bool reads_alike(const QuantizedFormat& f) const {
    const auto size = [](int64_t block, int64_t all) { return block ? std::min(block, all) : all; };
    const bool indexed = f.encoding == Encoding::kGptq && checkpoint_.has(module_ + ".g_idx");
    return f.bits == t_.format.bits && size(f.block_rows, t_.rows) == size(t_.format.block_rows, t_.rows) &&
           (indexed || size(f.block_cols, t_.cols) == size(t_.format.block_cols, t_.cols));
  }

  bool check_dtype(const std::string& name, const TensorInfo& info, std::initializer_list<std::string_view> allowed) {
    if (std::find(allowed.begin(), allowed.end(), info.dtype) != allowed.end()) return true;
    std::string expected;
    for (const std::string_view dtype : allowed) expected += (expected.empty() ? "" : " or ") + std::string(dtype);
    problems_.add_wrong_dtype(name, expected, info);
    return false;
  }

  void check_scale(const std::string& name) {
    const QuantizedFormat& f = t_.format;
    const bool mx = f.encoding == Encoding::kMxfp4Blocks || f.encoding == Encoding::kMxfp4Packed;
    const bool known = mx                                ? check_dtype(name, *t_.scale, {"U8", "F8_E8M0"})
                       : f.encoding == Encoding::kFloat8 ? check_dtype(name, *t_.scale, {"F32", "BF16", "F16", "F8_E8M0"})
                                                         : check_dtype(name, *t_.scale, {"F32", "BF16", "F16"});
    const std::optional<DType> dtype = floating_dtype(t_.scale->dtype);
    if (config_.method != "fp8" && dtype) t_.product_dtype = *dtype;
    t_.grid_rows = scale_rows(f);
    t_.grid_cols = scale_cols(f);
    if (is_scale_shape(f, t_.scale->shape)) return;
    if (!is_padded_scale(f, t_.scale->shape)) {
      std::string expected = str_cat(scale_shape(f));
      if (config_.method == "fp8") expected += ", or one to a row or to the tensor";
      return problems_.add_wrong_shape(name, expected, *t_.scale);
    }
    t_.grid_rows = t_.scale->shape[lead_.size()];
    t_.grid_cols = t_.scale->shape.back();
    if (known) check_padding(name);
  }

  // Scales in the padding are not used. If they are not the usual fillers, the block size is another than the config says.
  void check_padding(const std::string& name) {
    const std::vector<float> scales = read_scales(*t_.scale);
    for (size_t i = 0; i < scales.size(); ++i) {
      const int64_t row = int64_t(i) / t_.grid_cols % t_.grid_rows, col = int64_t(i) % t_.grid_cols;
      const bool padding = row >= scale_rows(t_.format) || col >= scale_cols(t_.format);
      if (padding && scales[i] != 0 && scales[i] != 1)
        return problems_.add_wrong_shape(name, str_cat(scale_shape(t_.format), ", and more only where it is filled with 0 or 1"),
                                         *t_.scale);
    }
  }

  void check_stored_shape() {
    const std::string name = name_ + "_shape";
    const TensorInfo* info = take(name);
    if (!info) return problems_.add_missing(name);
    if (!check_dtype(name, *info, {"I64", "I32"})) return;
    if (info->shape != Shape{int64_t(shape_.size())})
      return problems_.add_wrong_shape(name, str_cat(Shape{int64_t(shape_.size())}), *info);
    const Shape stored = read_integers(*info);
    if (stored != shape_) problems_.add_contradiction(name, str_cat("says ", stored, ", expected ", shape_));
  }

  Shape packed_zeros_shape(const QuantizedFormat& f) const {
    const int64_t rows = ceil_div(scale_rows(f), 32 / f.bits);
    return transposed(f) ? Shape{scale_cols(f), rows} : with_lead({rows, scale_cols(f)});
  }

  // Some tools store zero points for symmetric weights, too.
  void take_neutral_zeros() {
    const std::string name = zeros_name();
    const TensorInfo* zeros = take(name);
    if (!zeros) return;
    const QuantizedFormat& f = t_.format;
    const bool packed = f.encoding == Encoding::kPackedInt && zeros->dtype == "I32" && zeros->shape == packed_zeros_shape(f);
    const int64_t columns = scale_cols(f), word_rows = packed ? zeros->shape[lead_.size()] : 0;
    const uint32_t half = 1u << (f.bits - 1), mask = (1u << f.bits) - 1;
    bool neutral = packed || std::all_of(zeros->data, zeros->data + zeros->bytes, [](uint8_t b) { return b == 0; });
    for (int64_t i = 0; packed && i < zeros->bytes / 4; ++i) {
      const int64_t first_row = i / columns % word_rows * (32 / f.bits);
      const uint32_t word = load_value<uint32_t>(zeros->data + i * 4);
      for (int64_t j = 0; j < 32 / f.bits && first_row + j < scale_rows(f); ++j)
        neutral = neutral && (word >> (f.bits * j) & mask) == half;
    }
    if (!neutral) problems_.add_contradiction(name, "holds zero points that are not 0, but config_groups says symmetric true");
  }

  void find_zeros() {
    const QuantizedFormat& f = t_.format;
    const bool packed = f.encoding != Encoding::kInt8;
    const std::string name = zeros_name();
    t_.zero = take(name);
    if (!t_.zero) return problems_.add_missing(name);
    if (!check_dtype(name, *t_.zero, {packed ? "I32" : "I8"})) return;
    const Shape expected = packed ? packed_zeros_shape(f) : with_lead({scale_rows(f), scale_cols(f)});
    const bool as_scale = !packed && t_.scale && t_.zero->shape == t_.scale->shape && is_scale_shape(f, t_.scale->shape);
    if (t_.zero->shape != expected && !as_scale) problems_.add_wrong_shape(name, str_cat(expected), *t_.zero);
  }

  void find_group_index(const std::string& name) {
    t_.group_index = take(name);
    if (!t_.group_index || !check_dtype(name, *t_.group_index, {"I32"})) return;
    if (t_.group_index->shape != Shape{t_.cols}) return problems_.add_wrong_shape(name, str_cat(Shape{t_.cols}), *t_.group_index);
    const Shape groups = read_integers(*t_.group_index);
    const bool not_set = std::all_of(groups.begin(), groups.end(), [](int64_t g) { return g == -1; });
    if (not_set && t_.format.encoding == Encoding::kPackedInt) t_.group_index = nullptr;
    for (const int64_t g : groups)
      if (t_.group_index && (g < 0 || g >= scale_cols(t_.format)))
        return problems_.add_contradiction(name, str_cat("holds group ", g, " where there are ", scale_cols(t_.format)));
  }

  // Some tools give every module a bias: zeros where the model has none.
  void take_zero_bias() {
    const std::string name = module_ + ".bias";
    if (!checkpoint_.has(name)) return;
    const TensorInfo& bias = checkpoint_.at(name);
    if (std::all_of(bias.data, bias.data + bias.bytes, [](uint8_t b) { return b == 0; })) take(name);
  }

  const Checkpoint& checkpoint_;
  const QuantizationConfig& config_;
  const std::string& name_;
  const Shape& shape_;
  std::set<std::string_view>& used_;
  WeightProblems& problems_;
  std::string module_, sibling_;  // the module's name; the prefix of the names of its other tensors
  Shape lead_;                    // the weight's dimensions before [rows, cols]
  QuantizedTensor t_;
};

}  // namespace

std::optional<QuantizedTensor> find_quantized(const Checkpoint& checkpoint, const QuantizationConfig& config,
                                              const std::string& name, const std::vector<int64_t>& shape,
                                              std::set<std::string_view>& used, WeightProblems& problems) {
  if (shape.size() < 2) return std::nullopt;
  return Finder(checkpoint, config, name, shape, used, problems).find();
}

namespace {

// Returns the index of the first scale that is not finite, -1 where all are.
int64_t first_not_finite(const TensorInfo& scale) {
  const std::optional<DType> dtype = floating_dtype(scale.dtype);
  const auto first = [&]<class T>(T exponent) {
    constexpr int64_t kSize = sizeof(T);
    const int64_t count = scale.bytes / kSize;
    bool found = false;
    for (int64_t i = 0; i < count; ++i) found |= (load_value<T>(scale.data + i * kSize) & exponent) == exponent;
    for (int64_t i = 0; found && i < count; ++i)
      if ((load_value<T>(scale.data + i * kSize) & exponent) == exponent) return i;
    return int64_t(-1);
  };
  // All bits of the exponent are set; E8M0 is an exponent alone.
  if (!dtype) return first(uint8_t(0xff));
  if (*dtype == DType::kF32) return first(uint32_t(0x7f800000));
  return first(uint16_t(*dtype == DType::kBF16 ? 0x7f80 : 0x7c00));
}

}  // namespace

bool are_scales_finite(const QuantizedTensor& tensor) { return first_not_finite(*tensor.scale) < 0; }

void check_scales(const Checkpoint& checkpoint, const QuantizedTensor& tensor) {
  const int64_t at = first_not_finite(*tensor.scale);
  if (at < 0) return;
  fail(ErrorCode::kCorruptFile, tensor.scale_name, checkpoint.files()[size_t(tensor.scale->file)].path(), ": ",
       quote(tensor.scale_name), ": expected finite scales, got one that is not, number ", at);
}

}  // namespace lynx_rt
