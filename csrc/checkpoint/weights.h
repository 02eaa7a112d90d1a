// Binds checkpoint tensors to weight slots; every tensor of the checkpoint must be accounted for.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/memory.h"
#include "base/tensor.h"
#include "checkpoint/load_notes.h"
#include "checkpoint/quantization_config.h"
#include "checkpoint/safetensors.h"

namespace lynx_rt {

// A part of a tensor seen as a matrix [product of all but the last dimension, last], or with TensorSpec::columns: rows row_begin, row_begin + row_step, ..
// (`rows` of them), columns likewise; cols = 0 means all columns from col_begin on. A piece whose values follow one another in
// the file is bound in place; any other piece, and one that must be decoded or converted, is copied. A fused tensor has several
// pieces, e.g. experts.gate_up_proj [E, 2I, H] has 2E. A piece of whole rows of a quantised tensor may be bound in its blocks.
struct WeightPiece {
  WeightView* target;
  int64_t row_begin;
  int64_t rows;
  int64_t row_step = 1;
  int64_t col_begin = 0;
  int64_t cols = 0;
  int64_t col_step = 1;
  bool transposed = false;          // the target is the transpose of the part
  std::optional<DType> dtype = {};  // of the target; absent: the tensor's
  float offset = 0;                 // added to every value, in float32, before it is rounded to the dtype
  bool negative_exp = false;        // -exp(value), in float32, takes the place of every value
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<WeightPiece> pieces;  // together they cover the tensor, each element once
  int64_t columns = 0;              // of the matrix; 0 = the last dimension
};

// Returns the spec of a tensor that fills one slot whole; `shape` has one or two dimensions.
TensorSpec whole_tensor(std::string name, std::vector<int64_t> shape, WeightView* target);

// Pages of memory, zero until they are written.
struct ReleasePages {
  int64_t bytes = 0;
  void operator()(uint8_t* p) const noexcept { release_pages(p, bytes); }
};
using OwnedPages = std::unique_ptr<uint8_t[], ReleasePages>;
OwnedPages own_pages(int64_t bytes);

using OwnedWeights = std::vector<OwnedPages>;

// Copies of the weights that cannot be used in place in the mapped files. Their places are known from the start; their values are
// read on demand, so that a caller that moves weights elsewhere, one after the other, never holds all copies. The checkpoint must
// outlive the reads. Not thread-safe (a read uses all cores).
class WeightCopies {
 public:
  struct Block;  // weight_copies.h

  WeightCopies();
  explicit WeightCopies(std::unique_ptr<Block> block);
  WeightCopies(WeightCopies&&) noexcept;
  WeightCopies& operator=(WeightCopies&&) noexcept;
  ~WeightCopies();

  int64_t bytes() const;       // of all copies
  int64_t bytes_read() const;  // of those that have been read
  // Reads the view's values, together with the others of its tensor, unless they have been read. Leaves a view of other memory
  // alone.
  void read(const WeightView& view);
  void check_memory() const;                     // throws kOutOfMemory where all of them do not fit into free memory
  void read_all();                               // throws kOutOfMemory as check_memory() does
  int64_t extent(const WeightView& view) const;  // bytes from the start of its data to the end of its copy; 0 for other memory
  // Gives back the memory of a view whose values are not needed any more.
  void release(const WeightView& view);

 private:
  std::unique_ptr<Block> block_;
};

// How targets become views in blocks: those that may are used where they lie in the file, or repacked to a copy, instead of being
// decoded (checkpoint/block_tensor.h).
struct BlockBinding {
  // Whether a target may be in these blocks, of which only the form counts; empty: none may.
  std::function<bool(const WeightView* target, const BlockRows& rows)> takes = {};
  // Both targets become blocks, or none; grouped codes are of one form.
  std::vector<std::pair<const WeightView*, const WeightView*>> alike = {};
  bool check_scales = true;  // reads the scales that are used in place
};

// Fills every target: with its place in the mapped file where the values can be used there, else with its place among the copies.
// Nothing is filled unless everything fits. Each spec must find its tensor with that exact shape and a floating dtype (F32, BF16,
// F16; F64 is converted to `dtype`), or the weight quantised as `quantization` says, which is then decoded to `dtype`
// (quantized_tensor.h), or bound in blocks. Each tensor of the checkpoint must be named by a spec, belong to such a weight, or match
// an `ignore` pattern (a name, a prefix ending in '*', a suffix starting with '*', or a part between two '*'). Otherwise throws kCorruptFile with the count and
// the first ten of each kind: missing, unexpected, wrong shape, wrong dtype, contradictory. Specs that name a tensor twice, or
// whose pieces do not cover it, are a bug of the caller: kInternal. Scales of a KV cache are ignored everywhere. `read_values`:
// all copies are read before it returns. `notes`: receives warnings and unused tensors. Test: tests/cpp/test_checkpoint.cc,
// tests/checkpoint/test_quantized_formats.py.
WeightCopies bind_weights(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs,
                          const std::vector<std::string>& ignore, const QuantizationConfig& quantization = {},
                          DType dtype = DType::kBF16, bool read_values = true, LoadNotes* notes = nullptr,
                          const BlockBinding& blocks = {});

}  // namespace lynx_rt
