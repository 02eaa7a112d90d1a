#include "checkpoint/weight_copies.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "base/thread_pool.h"
#include "checkpoint/block_tensor.h"
#include "checkpoint/dequantizer.h"
#include "checkpoint/tensor_values.h"

namespace lynx_rt {

namespace {

constexpr int64_t kBandRows = 32;     // rows that a thread copies at a time: transposed, they fill a cache line
constexpr int64_t kRepackRows = 128;  // rows that a thread repacks at a time: their words are next to each other in the file
constexpr int64_t kDropBytes =
    256 << 20;  // bytes copied before the file's pages are dropped, which keeps peak memory near the result's size
constexpr int64_t kAlignment = 64;
constexpr uintptr_t kPage = 4096;

}  // namespace

// Copies the pieces of one tensor, in parallel.
class WeightCopies::Block::Copier {
 public:
  Copier() : pool_(plan_copying()), scratch_(size_t(pool_.num_threads())) {}

  void run(const WeightSource& source, const MatrixShape& m, const std::vector<Piece>& copies, uint8_t* to) {
    std::optional<Dequantizer> dequantizer;
    std::optional<Repacker> repacker;
    struct Band {
      const Piece* copy;
      int64_t begin;
    };
    std::vector<Band> bands;
    for (const Piece& copy : copies) {
      for (int64_t i = 0; i < copy.piece.rows; i += copy.repacked ? kRepackRows : kBandRows) bands.push_back({&copy, i});
      if (copy.repacked && !repacker) repacker.emplace(*source.quantized);
      if (!copy.repacked && source.quantized && !dequantizer) dequantizer.emplace(*source.quantized);
    }
    for (Scratch& s : scratch_) {
      s.floats.resize(size_t(m.cols));
      s.rows.resize(size_t(m.cols * kBandRows * 4));
    }
    pool_.parallel_for(int64_t(bands.size()), [&](int64_t task, int thread) {
      const Band& b = bands[size_t(task)];
      const WeightPiece& p = b.copy->piece;
      if (b.copy->repacked) return repacker->repack(p, b.begin, std::min(kRepackRows, p.rows - b.begin), to + b.copy->offset);
      const int64_t count = std::min(kBandRows, p.rows - b.begin);
      const DType dtype = p.dtype.value_or(source.dtype);
      const bool same =
          source.plain && !source.decode && !source.is_double() && dtype == source.dtype && p.offset == 0 && !p.negative_exp;
      const int64_t row_bytes = m.cols * dtype_size(dtype);
      const uint8_t* rows[kBandRows];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = p.row_begin + (b.begin + i) * p.row_step;
        uint8_t* buffer = scratch_[size_t(thread)].rows.data() + i * row_bytes;
        rows[i] = same ? source.plain->data + row * row_bytes : buffer;
        if (!same) convert(source, dequantizer, row, m.cols, scratch_[size_t(thread)].floats.data(), dtype, p, buffer);
      }
      uint8_t* target = to + b.copy->offset;
      if (dtype == DType::kF32) {
        place<uint32_t>(rows, count, p, b.begin, target);
      } else {
        place<uint16_t>(rows, count, p, b.begin, target);
      }
    });
  }

 private:
  struct Scratch {
    std::vector<float> floats;
    std::vector<uint8_t> rows;
  };

  static void convert(const WeightSource& source, const std::optional<Dequantizer>& dequantizer, int64_t row, int64_t cols,
                      float* floats, DType dtype, const WeightPiece& piece, uint8_t* to) {
    if (dequantizer) {
      dequantizer->decode(row, floats);
      if (source.quantized->product_dtype != dtype) round_floats(floats, cols, source.quantized->product_dtype);
    } else if (source.decode) {
      source.decode(source.plain->data + row * source.row_bytes, cols, floats);
    } else if (source.is_double()) {
      load_doubles(source.plain->data + row * cols * int64_t(sizeof(double)), cols, floats);
    } else {
      load_floats(source.plain->data + row * cols * dtype_size(source.dtype), source.dtype, cols, floats);
    }
    if (piece.offset != 0)
      for (int64_t i = 0; i < cols; ++i) floats[i] += piece.offset;
    if (piece.negative_exp)
      for (int64_t i = 0; i < cols; ++i) floats[i] = -std::exp(floats[i]);
    store_floats(floats, cols, dtype, to);
  }

  // Copies rows [begin, begin + count) of a piece to their places in its target. Sources may be unaligned.
  template <class T>
  static void place(const uint8_t* const* rows, int64_t count, const WeightPiece& p, int64_t begin, uint8_t* target) {
    constexpr int64_t kSize = sizeof(T);
    if (!p.transposed && p.col_step == 1) {
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(target + (begin + i) * p.cols * kSize, rows[i] + p.col_begin * kSize, size_t(p.cols * kSize));
      return;
    }
    T* to = reinterpret_cast<T*>(target);
    if (!p.transposed) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < p.cols; ++j)
          to[(begin + i) * p.cols + j] = load_value<T>(rows[i] + (p.col_begin + j * p.col_step) * kSize);
      return;
    }
    for (int64_t j = 0; j < p.cols; ++j)
      for (int64_t i = 0; i < count; ++i)
        to[j * p.rows + begin + i] = load_value<T>(rows[i] + (p.col_begin + j * p.col_step) * kSize);
  }

  ThreadPool pool_;
  std::vector<Scratch> scratch_;
};

WeightCopies::Block::Block(const Checkpoint& from) : checkpoint(from) {}
WeightCopies::Block::~Block() = default;

void WeightCopies::Block::add(WeightSource source, const MatrixShape& shape, const std::vector<WeightPiece>& of_tensor,
                              const std::vector<WeightPiece>& repacked) {
  Tensor& tensor = tensors.emplace_back(Tensor{std::move(source), shape, {}, bytes, 0});
  for (const WeightPiece& piece : of_tensor) {
    tensor.pieces.push_back({piece, bytes, false});
    bytes += round_up(piece.target->bytes(), kAlignment);
  }
  for (const WeightPiece& piece : repacked) {
    tensor.pieces.push_back({piece, bytes, true});
    bytes += Repacker::bytes(*tensor.source.quantized, piece.rows);
  }
  tensor.bytes = bytes - tensor.begin;
}

void WeightCopies::Block::allocate() {
  memory = own_pages(bytes);
  for (const Tensor& tensor : tensors)
    for (const Piece& p : tensor.pieces) {
      WeightView& target = *p.piece.target;
      target.data = memory.get() + p.offset;
      if (!p.repacked) continue;
      const BlockRows rows = Repacker::result(*tensor.source.quantized, p.piece.rows, memory.get() + p.offset);
      target = view_of_blocks(rows, target.rows, target.cols, target.dtype);
    }
}

WeightCopies::Block::Tensor* WeightCopies::Block::find(const void* data) {
  const int64_t offset = static_cast<const uint8_t*>(data) - memory.get();
  if (offset < 0 || offset >= bytes) return nullptr;
  const auto after = std::upper_bound(tensors.begin(), tensors.end(), offset,
                                      [](int64_t at, const Tensor& tensor) { return at < tensor.begin; });
  return &*(after - 1);
}

void WeightCopies::Block::read(Tensor& tensor) {
  if (tensor.read) return;
  if (!copier) copier = std::make_unique<Copier>();
  if (tensor.source.quantized) check_scales(checkpoint, *tensor.source.quantized);
  copier->run(tensor.source, tensor.shape, tensor.pieces, memory.get());
  tensor.read = true;
  read_bytes += tensor.bytes;
  if (read_bytes - dropped >= kDropBytes) {
    checkpoint.drop_pages();
    dropped = read_bytes;
  }
  if (read_bytes == bytes) copier.reset();
}

WeightCopies::WeightCopies() = default;
WeightCopies::WeightCopies(std::unique_ptr<Block> block) : block_(std::move(block)) {}
WeightCopies::WeightCopies(WeightCopies&&) noexcept = default;
WeightCopies& WeightCopies::operator=(WeightCopies&&) noexcept = default;
WeightCopies::~WeightCopies() = default;

int64_t WeightCopies::bytes() const { return block_ ? block_->bytes : 0; }

int64_t WeightCopies::bytes_read() const { return block_ ? block_->read_bytes : 0; }

void WeightCopies::read(const WeightView& view) {
  if (!block_ || view.empty()) return;
  if (Block::Tensor* tensor = block_->find(view.data)) block_->read(*tensor);
}

int64_t WeightCopies::extent(const WeightView& view) const {
  const Block::Tensor* tensor = block_ && !view.empty() ? block_->find(view.data) : nullptr;
  if (!tensor) return 0;
  const int64_t at = static_cast<const uint8_t*>(view.data) - block_->memory.get();
  int64_t end = tensor->begin + tensor->bytes;
  for (const Block::Piece& p : tensor->pieces)
    if (p.offset > at) end = std::min(end, p.offset);
  return end - at;
}

void WeightCopies::check_memory() const {
  if (const int64_t free = free_memory_bytes(); bytes() > free)
    fail(ErrorCode::kOutOfMemory, "weights", "weights: ", bytes(), " bytes are decoded or copied, but ", free, " are free");
}

void WeightCopies::read_all() {
  if (!block_) return;
  check_memory();
  for (Block::Tensor& tensor : block_->tensors) block_->read(tensor);
}

void WeightCopies::release(const WeightView& view) {
  if (!block_ || view.empty() || !block_->find(view.data)) return;
  // Pages that the view shares with others stay.
  const uintptr_t at = reinterpret_cast<uintptr_t>(view.data);
  const uintptr_t begin = (at + kPage - 1) / kPage * kPage, end = (at + uintptr_t(view.bytes())) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace lynx_rt
