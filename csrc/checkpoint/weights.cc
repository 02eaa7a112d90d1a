#include "checkpoint/weights.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "checkpoint/json.h"

namespace lynx_rt {

namespace {

constexpr size_t kMaxListed = 10;

// What is wrong with the checkpoint, collected so that one error shows all of it.
class Problems {
 public:
  void add_missing(const std::string& name) { add(missing_, name, quote(name)); }
  void add_unexpected(const std::string& name) { add(unexpected_, name, quote(name)); }
  void add_wrong_shape(const TensorSpec& spec, const TensorInfo& found) {
    add(wrong_shape_, spec.name, str_cat(quote(spec.name), " (expected ", spec.shape, ", got ", found.shape, ")"));
  }
  void add_wrong_dtype(const TensorSpec& spec, const TensorInfo& found) {
    add(wrong_dtype_, spec.name, str_cat(quote(spec.name), " (expected F32, BF16 or F16, got ", found.dtype, ")"));
  }

  // Throws where anything was added; the field is the first tensor that was.
  void raise(const Checkpoint& checkpoint) const {
    std::string text;
    for (const Kind* kind : {&missing_, &unexpected_, &wrong_shape_, &wrong_dtype_}) {
      if (kind->count == 0) continue;
      text += str_cat(text.empty() ? "" : "; ", kind->count, " ", kind->title, ": ", kind->listed);
      if (kind->count > kMaxListed) text += str_cat(" and ", kind->count - kMaxListed, " more");
    }
    if (text.empty()) return;
    const std::string where = checkpoint.files().empty() ? "checkpoint" : checkpoint.files()[0].path();
    fail(ErrorCode::kCorruptFile, first_, where, ": does not fit the model: ", text);
  }

 private:
  struct Kind {
    const char* title;
    size_t count = 0;
    std::string listed;
  };
  void add(Kind& kind, const std::string& name, const std::string& text) {
    if (first_.empty()) first_ = name;
    if (++kind.count > kMaxListed) return;
    kind.listed += kind.listed.empty() ? text : ", " + text;
  }

  Kind missing_{"missing", 0, {}};
  Kind unexpected_{"unexpected", 0, {}};
  Kind wrong_shape_{"of the wrong shape", 0, {}};
  Kind wrong_dtype_{"of the wrong dtype", 0, {}};
  std::string first_;
};

std::optional<DType> floating_dtype(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  return std::nullopt;
}

bool matches(std::string_view name, std::string_view pattern) {
  if (pattern.starts_with('*')) return name.ends_with(pattern.substr(1));
  if (pattern.ends_with('*')) return name.starts_with(pattern.substr(0, pattern.size() - 1));
  return name == pattern;
}

template <class... Parts>
[[noreturn]] void fail_table(const TensorSpec& spec, const Parts&... parts) {
  fail(ErrorCode::kInternal, spec.name, "weight table: ", spec.name, ": ", parts...);
}

// The product cannot overflow where the shape equals that of a tensor in a file: the reader has checked it.
int64_t num_rows(const std::vector<int64_t>& shape) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

// Checks that the pieces cover rows [0, rows) each once.
void check_pieces(const TensorSpec& spec, int64_t rows) {
  std::vector<std::pair<int64_t, int64_t>> spans;  // [begin, count]
  for (const WeightPiece& piece : spec.pieces) {
    if (!piece.target) fail_table(spec, "a piece has no target");
    if (piece.row_begin < 0 || piece.rows < 0) fail_table(spec, "a piece has negative rows");
    spans.emplace_back(piece.row_begin, piece.rows);
  }
  std::sort(spans.begin(), spans.end());
  int64_t covered = 0;
  for (const auto& [begin, count] : spans) {
    if (begin != covered || count > rows - covered) {
      fail_table(spec, "pieces must cover its ", rows, " rows once each; one has rows [", begin, ", +", count, ") where ",
                 covered, " are covered");
    }
    covered += count;
  }
  if (covered != rows) fail_table(spec, "pieces cover ", covered, " of its ", rows, " rows");
}

// Where the tensor's data can be read as its element type: in the mapping, or in a copy where it is not aligned there.
const uint8_t* aligned_data(const TensorInfo& info, DType dtype, OwnedWeights& owned) {
  const bool aligned = reinterpret_cast<uintptr_t>(info.data) % uintptr_t(dtype_size(dtype)) == 0;
  if (aligned || info.bytes == 0) return info.data;
  owned.push_back(std::make_unique_for_overwrite<uint8_t[]>(size_t(info.bytes)));
  std::memcpy(owned.back().get(), info.data, size_t(info.bytes));
  return owned.back().get();
}

void bind(const TensorSpec& spec, const TensorInfo& info, DType dtype, OwnedWeights& owned) {
  const int64_t cols = spec.shape.empty() ? 1 : spec.shape.back();
  check_pieces(spec, num_rows(spec.shape));
  const uint8_t* data = aligned_data(info, dtype, owned);
  for (const WeightPiece& piece : spec.pieces) {
    WeightView view{data, dtype, piece.rows, cols};
    view.data = view.row(piece.row_begin);
    *piece.target = view;
  }
}

}  // namespace

TensorSpec whole_tensor(std::string name, std::vector<int64_t> shape, WeightView* target) {
  TensorSpec spec{std::move(name), std::move(shape), {}};
  if (spec.shape.empty() || spec.shape.size() > 2) {
    fail_table(spec, "expected one or two dimensions, got shape ", spec.shape);
  }
  spec.pieces = {{target, 0, num_rows(spec.shape)}};
  return spec;
}

OwnedWeights bind_weights(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs,
                          const std::vector<std::string>& ignore) {
  std::set<std::string_view> named;
  Problems problems;
  for (const TensorSpec& spec : specs) {
    if (!named.insert(spec.name).second) fail_table(spec, "named twice");
    if (!checkpoint.has(spec.name)) {
      problems.add_missing(spec.name);
      continue;
    }
    const TensorInfo& info = checkpoint.at(spec.name);
    if (info.shape != spec.shape) problems.add_wrong_shape(spec, info);
    if (!floating_dtype(info.dtype)) problems.add_wrong_dtype(spec, info);
  }
  for (const auto& [name, info] : checkpoint.tensors()) {
    const auto ignores = [&name = name](const std::string& pattern) { return matches(name, pattern); };
    if (!named.count(name) && std::none_of(ignore.begin(), ignore.end(), ignores)) problems.add_unexpected(name);
  }
  problems.raise(checkpoint);

  OwnedWeights owned;
  for (const TensorSpec& spec : specs) {
    const TensorInfo& info = checkpoint.at(spec.name);
    bind(spec, info, *floating_dtype(info.dtype), owned);
  }
  return owned;
}

}  // namespace lynx_rt
