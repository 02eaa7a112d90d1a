#include "checkpoint/gptq_zeros.h"

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/tensor_values.h"

namespace lynx_rt {

namespace {

// Rows of 32-bit words that hold codes of `bits` bits; the last word of a row may have unused fields.
struct ZeroCodes {
  const TensorInfo* words;
  int bits;
  int64_t columns;

  int64_t per_word() const { return 32 / bits; }
  uint32_t mask() const { return (1u << bits) - 1; }
};

std::optional<ZeroCodes> zero_codes(const Checkpoint& checkpoint, const QuantizationConfig& config, const std::string& name,
                                    const TensorInfo& info) {
  const std::string scales_name = name.substr(0, name.size() - std::string_view("qzeros").size()) + "scales";
  if (!checkpoint.has(scales_name)) return std::nullopt;
  const std::vector<int64_t>& scales = checkpoint.at(scales_name).shape;
  if (info.dtype != "I32" || info.shape.size() != 2 || scales.size() != 2 || info.shape[0] != scales[0]) return std::nullopt;
  for (const QuantizedFormat& f : config.formats)
    if (info.shape[1] == ceil_div(scales[1], 32 / f.bits)) return ZeroCodes{&info, f.bits, scales[1]};
  return std::nullopt;
}

int64_t count_codes(const ZeroCodes& z, uint32_t code) {
  uint32_t repeated = 0;
  for (int shift = 0; shift < 32; shift += z.bits) repeated |= code << shift;
  const int64_t rows = z.words->shape[0], words = z.words->shape[1];
  int64_t count = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t w = 0; w < words; ++w) {
      const uint32_t word = load_value<uint32_t>(z.words->data + (r * words + w) * 4);
      const int64_t fields = std::min(z.per_word(), z.columns - w * z.per_word());
      if (word == repeated) {
        count += fields;
        continue;
      }
      for (int64_t i = 0; i < fields; ++i) count += (word >> (z.bits * i) & z.mask()) == code;
    }
  return count;
}

// Counts of a symmetric file's tensors by what they hold, and the first tensor of each kind.
struct Symmetric {
  int64_t less_one = 0, as_is = 0;
  std::string first_less_one, first_as_is, first_other;
};

}  // namespace

bool are_zeros_less_one(const Checkpoint& checkpoint, const QuantizationConfig& config, WeightProblems& problems,
                        LoadNotes& notes) {
  if (config.method != "gptq") return config.zeros_less_one;
  Symmetric found;
  int64_t highest = 0;
  std::string first_highest;
  const bool symmetric = config.symmetric.value_or(true);
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (!name.ends_with(".qzeros")) continue;
    const std::optional<ZeroCodes> zeros = zero_codes(checkpoint, config, name, info);
    if (!zeros) continue;
    const int64_t all = info.shape[0] * zeros->columns;
    const uint32_t half = 1u << (zeros->bits - 1);
    if (symmetric && count_codes(*zeros, half - 1) == all) {
      if (found.less_one++ == 0) found.first_less_one = name;
      continue;
    }
    if (symmetric && count_codes(*zeros, half) == all) {
      if (found.as_is++ == 0) found.first_as_is = name;
      continue;
    }
    if (found.first_other.empty()) found.first_other = name;
    if (config.symmetric == true)
      problems.add_contradiction(name, str_cat("has other zero points than ", half, ", stored as ", half - 1, " or ", half,
                                               ", though ", config.source, " says sym true"));
    if (!config.zeros_less_one) continue;
    const int64_t count = count_codes(*zeros, zeros->mask());
    if (highest == 0 && count > 0) first_highest = name;
    highest += count;
  }
  if (highest > 0)
    notes.warnings.push_back(str_cat(highest, " zero points, the first in ", quote(first_highest),
                                     ", are stored as the highest code of a format that stores them less one; they are "
                                     "taken for 0, as GPTQ's own kernels do, where other readers take them for 2^bits"));
  if (!found.first_other.empty() || found.less_one + found.as_is == 0) return config.zeros_less_one;
  if (found.less_one > 0 && found.as_is > 0) {
    problems.add_contradiction(found.first_as_is, str_cat("stores its zero points as they are, ", quote(found.first_less_one),
                                                          " less one; expected the same in all tensors"));
    return config.zeros_less_one;
  }
  const bool less_one = found.less_one > 0;
  if (less_one != config.zeros_less_one)
    notes.warnings.push_back(str_cat(config.source, " says checkpoint_format ", config.zeros_less_one ? "gptq" : "gptq_v2",
                                     " and symmetric weights, but all ", found.less_one + found.as_is,
                                     " tensors of zero points are those of ", less_one ? "gptq" : "gptq_v2",
                                     ", as which they are read"));
  return less_one;
}

}  // namespace lynx_rt
