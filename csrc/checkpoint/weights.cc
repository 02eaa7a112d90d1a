#include "checkpoint/weights.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "checkpoint/block_tensor.h"
#include "checkpoint/gptq_zeros.h"
#include "checkpoint/kv_cache_scales.h"
#include "checkpoint/tensor_values.h"
#include "checkpoint/weight_copies.h"
#include "checkpoint/weight_problems.h"

namespace lynx_rt {

namespace {

bool matches(std::string_view name, std::string_view pattern) {
  if (pattern.size() > 2 && pattern.starts_with('*') && pattern.ends_with('*'))
    return name.find(pattern.substr(1, pattern.size() - 2)) != name.npos;
  if (pattern.starts_with('*')) return name.ends_with(pattern.substr(1));
  if (pattern.ends_with('*')) return name.starts_with(pattern.substr(0, pattern.size() - 1));
  return name == pattern;
}

// Returns the piece's address in the mapped file where its target can use it there, else null.
const uint8_t* plain_in_place(const WeightPiece& p, const WeightSource& source, const MatrixShape& m) {
  if (!source.plain || source.decode || source.is_double() || p.transposed || p.offset != 0 || p.negative_exp ||
      p.dtype.value_or(source.dtype) != source.dtype)
    return nullptr;
  const bool one_after_the_other = p.rows <= 1 ? p.col_step == 1 : p.row_step == 1 && p.cols == m.cols;
  if (!one_after_the_other) return nullptr;
  const int64_t size = dtype_size(source.dtype);
  const uint8_t* data = source.plain->data + (p.row_begin * m.cols + p.col_begin) * size;
  return reinterpret_cast<uintptr_t>(data) % uintptr_t(size) == 0 || p.rows * p.cols == 0 ? data : nullptr;
}

// Returns the sources of all specs; throws where anything does not fit.
std::vector<WeightSource> find_sources(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs,
                                       const std::vector<std::string>& ignore, QuantizationConfig quantization, DType dtype,
                                       LoadNotes& notes) {
  std::set<std::string_view> named, used;
  WeightProblems problems;
  quantization.zeros_less_one = are_zeros_less_one(checkpoint, quantization, problems, notes);
  std::vector<WeightSource> sources;
  sources.reserve(specs.size());
  for (const TensorSpec& spec : specs) {
    if (!named.insert(spec.name).second) fail_table(spec, "named twice");
    WeightSource& source = sources.emplace_back();
    source.dtype = dtype;
    if (auto found = find_quantized(checkpoint, quantization, spec.name, spec.shape, used, problems)) {
      source.quantized = std::make_unique<const QuantizedTensor>(*std::move(found));
      continue;
    }
    if (!checkpoint.has(spec.name)) {
      problems.add_missing(spec.name);
      continue;
    }
    source.plain = &checkpoint.at(spec.name);
    if (source.plain->shape != spec.shape) problems.add_wrong_shape(spec.name, str_cat(spec.shape), *source.plain);
    const std::optional<DType> found = floating_dtype(source.plain->dtype);
    if (const GgufType* type = found ? nullptr : find_gguf_type(source.plain->dtype)) {
      source.decode = decoder_of(*type);
      source.row_bytes = matrix_shape(spec).cols / type->values * type->bytes;
      if (!source.plain->shape.empty()) source.blocks = rows_in_blocks(*type, *source.plain);
    }
    if (!found && !source.decode && !source.is_double())
      problems.add_wrong_dtype(spec.name, "F64, F32, BF16 or F16", *source.plain);
    source.dtype = found.value_or(dtype);
  }
  int64_t cache_scales = 0;
  for (const auto& [name, info] : checkpoint.tensors()) {
    const auto ignores = [&name = name](const std::string& pattern) { return matches(name, pattern); };
    if (named.count(name) || used.count(name) || std::any_of(ignore.begin(), ignore.end(), ignores)) continue;
    if (is_kv_cache_scale(name)) {
      ++cache_scales;
    } else {
      problems.add_unexpected(name);
    }
  }
  if (cache_scales > 0)
    notes.not_used.push_back(str_cat(cache_scales, " scales of a quantised KV cache, which is kept unquantised"));
  const auto is_quantized = [](const WeightSource& source) { return source.quantized != nullptr; };
  if (!quantization.empty() && std::none_of(sources.begin(), sources.end(), is_quantized))
    problems.add_contradiction(quantization.source, "says " + quantization.description() + ", but no weight is quantised");
  problems.raise(checkpoint);
  return sources;
}

// The targets that become views in blocks.
struct BlockForm {
  BlockRows rows;  // where they lie in the file; of those that are repacked only the form
  bool in_place;
};
using BlockForms = std::map<const WeightView*, BlockForm>;

// Whether two weights have one form, in which an op can take them together.
bool are_alike(const BlockForms& forms, const WeightView* first, const WeightView* second) {
  const auto a = forms.find(first), b = forms.find(second);
  if (a == forms.end() || b == forms.end()) return a == b;
  const BlockRows &x = a->second.rows, &y = b->second.rows;
  if (x.group == 0 && y.group == 0) return true;  // scales are in the blocks
  return x.code == y.code && x.group == y.group && x.scale_type == y.scale_type &&
         (x.zero_row_bytes == 0) == (y.zero_row_bytes == 0);
}

// Returns whole rows of a matrix, as a piece has them; nullopt for another piece.
std::optional<BlockRows> rows_of(const BlockRows& matrix, int64_t cols, const WeightPiece& p) {
  if (p.transposed || p.cols != cols || p.rows == 0) return std::nullopt;
  BlockRows rows = from_row(matrix, p.row_begin);
  for (int64_t* bytes : {&rows.row_bytes, &rows.scale_row_bytes, &rows.zero_row_bytes}) *bytes *= p.row_step;
  return rows;
}

BlockForms block_forms(const std::vector<TensorSpec>& specs, const std::vector<WeightSource>& sources,
                       const std::vector<std::vector<WeightPiece>>& pieces, const BlockBinding& blocks) {
  BlockForms forms;
  for (size_t s = 0; s < sources.size(); ++s) {
    const WeightSource& source = sources[s];
    for (const WeightPiece& piece : pieces[s]) {
      if (!blocks.takes || !(source.blocks || source.quantized)) continue;
      std::optional<BlockForm> form;
      if (const auto rows = source.blocks ? rows_of(*source.blocks, matrix_shape(specs[s]).cols, piece)
                                          : blocks_in_place(*source.quantized, piece))
        form = {*rows, true};
      else if (source.quantized && Repacker::repacks(*source.quantized, piece))
        form = {Repacker::result(*source.quantized, piece.rows, nullptr), false};
      if (form && blocks.takes(piece.target, form->rows)) forms[piece.target] = *form;
    }
  }
  for (const auto& [first, second] : blocks.alike)
    if (!are_alike(forms, first, second)) {
      forms.erase(first);
      forms.erase(second);
    }
  return forms;
}

void check_scales_in_place(const Checkpoint& checkpoint, const std::vector<WeightSource>& sources,
                           const std::vector<std::vector<WeightPiece>>& pieces, const BlockForms& forms) {
  std::vector<const QuantizedTensor*> tensors;
  for (size_t s = 0; s < sources.size(); ++s)
    if (sources[s].quantized && std::any_of(pieces[s].begin(), pieces[s].end(), [&](const WeightPiece& p) {
          const auto form = forms.find(p.target);
          return form != forms.end() && form->second.in_place;
        }))
      tensors.push_back(sources[s].quantized.get());
  if (tensors.empty()) return;
  ThreadPool pool(plan_copying());
  std::vector<uint8_t> bad(tensors.size());
  pool.parallel_for(int64_t(tensors.size()), [&](int64_t i, int) { bad[size_t(i)] = !are_scales_finite(*tensors[size_t(i)]); });
  for (size_t i = 0; i < tensors.size(); ++i)
    if (bad[i]) check_scales(checkpoint, *tensors[i]);
}

}  // namespace

TensorSpec whole_tensor(std::string name, std::vector<int64_t> shape, WeightView* target) {
  TensorSpec spec{std::move(name), std::move(shape), {}};
  if (spec.shape.empty() || spec.shape.size() > 2) {
    fail_table(spec, "expected one or two dimensions, got shape ", spec.shape);
  }
  spec.pieces = {{target, 0, matrix_shape(spec).rows}};
  return spec;
}

OwnedPages own_pages(int64_t bytes) {
  return OwnedPages(static_cast<uint8_t*>(allocate_pages(bytes, "weights")), ReleasePages{bytes});
}

WeightCopies bind_weights(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs,
                          const std::vector<std::string>& ignore, const QuantizationConfig& quantization, DType dtype,
                          bool read_values, LoadNotes* notes, const BlockBinding& blocks) {
  LoadNotes unseen;
  std::vector<WeightSource> sources = find_sources(checkpoint, specs, ignore, quantization, dtype, notes ? *notes : unseen);
  std::vector<std::vector<WeightPiece>> pieces;
  for (const TensorSpec& spec : specs) pieces.push_back(checked_pieces(spec));
  const BlockForms forms = block_forms(specs, sources, pieces, blocks);
  if (blocks.check_scales) check_scales_in_place(checkpoint, sources, pieces, forms);
  auto block = std::make_unique<WeightCopies::Block>(checkpoint);
  for (size_t s = 0; s < specs.size(); ++s) {
    const MatrixShape m = matrix_shape(specs[s]);
    std::vector<WeightPiece> copied, repacked;
    for (const WeightPiece& piece : pieces[s]) {
      WeightView& target = *piece.target = target_view(piece, sources[s].dtype);
      if (const auto form = forms.find(&target); form != forms.end()) {
        if (form->second.in_place)
          target = view_of_blocks(form->second.rows, target.rows, target.cols, target.dtype);
        else
          repacked.push_back(piece);
        continue;
      }
      target.data = plain_in_place(piece, sources[s], m);
      if (!target.data) copied.push_back(piece);
    }
    if (!copied.empty() || !repacked.empty()) block->add(std::move(sources[s]), m, copied, repacked);
  }
  if (block->tensors.empty()) return {};
  block->allocate();
  WeightCopies copies(std::move(block));
  if (read_values) copies.read_all();
  return copies;
}

}  // namespace lynx_rt
