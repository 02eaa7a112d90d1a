// Places weights on the device: matrices packed, those in codes as they are, vectors as float32.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/gemm/packed.h"

namespace lynx_rt {

using namespace cuda;

namespace {

constexpr int64_t kAlignment = 256;  // of an expert's matrices: a warp's loads of a block of codes

}  // namespace

bool CudaBackend::takes_blocks(WeightUse use, const BlockRows& rows) const {
  return (use == WeightUse::kMatrix || use == WeightUse::kHead || use == WeightUse::kExpert) && multiplies(rows);
}

// The view's bytes() become those of the values without padding.
void CudaBackend::pack_weight(WeightView& view, const PackTarget& target) {
  if (view.format == QuantFormat::kBlocks) {
    loader_->load_codes(view, [&](const BlockRows& rows, int64_t begin, int64_t count) {
      pack_codes(rows, begin, count, view.rows, view.cols, target, stream_);
    });
    view.quantized_row_bytes = block_bytes(view.blocks, 1, view.cols);
  } else {
    loader_->load(view, [&](const void* rows, int64_t begin, int64_t count) {
      pack(rows, view.dtype, begin, count, view.cols, target, stream_);
    });
    view.quantized_row_bytes = view.cols * dtype_size(DType::kBF16);
  }
  view.data = target.data;
  if (view.blocks.data) view.blocks.data = target.data;  // of the other addresses it only counts whether they are null
  view.dtype = DType::kBF16;
  view.format = QuantFormat::kPacked;
}

WeightView CudaBackend::place(const WeightView& weight, WeightUse use) {
  if (weight.empty()) return weight;
  set_device(device_);
  const bool matrix = use == WeightUse::kEmbed || use == WeightUse::kMatrix || use == WeightUse::kHead;
  if (const auto found = placed_.find(weight.data); found != placed_.end() && matrix) return found->second;
  WeightView placed = weight;
  if (matrix) {
    pack_weight(placed, {allocate_weights(packed_bytes(weight.rows, weight.cols, form_of(weight))), 1, 0});
    placed_.emplace(weight.data, placed);
    return placed;
  }
  if (use == WeightUse::kVector || weight.dtype == DType::kF16) placed.dtype = DType::kF32;
  weights_.push_back(allocate_device(placed.bytes(), "weights"));
  char* to = static_cast<char*>(weights_.back().get());
  placed.data = to;
  loader_->load(weight, [&](const void* rows, int64_t begin, int64_t count) {
    void* at = to + begin * placed.row_bytes();
    if (placed.dtype == weight.dtype) {
      copy_async(at, rows, size_t(count * weight.row_bytes()), stream_);
    } else {
      to_float32(rows, weight.dtype, count * weight.cols, static_cast<float*>(at), stream_);
    }
  });
  return placed;
}

char* CudaBackend::allocate_weights(int64_t bytes) {
  weights_.push_back(allocate_device(bytes, "weights"));
  return static_cast<char*>(weights_.back().get());
}

void CudaBackend::place_heads(std::span<WeightView> heads) {
  set_device(device_);
  const int64_t rows = heads[0].rows, cols = heads[0].cols, bytes = packed_bytes(rows, cols);
  char* to = allocate_weights(checked_mul(int64_t(heads.size()), bytes, "weights"));
  for (WeightView& view : heads) {
    if (view.rows != rows || view.cols != cols) invalid("heads", "the matrices of all heads must have the same shape");
    loader_->load(view, [&](const void* from, int64_t begin, int64_t count) {
      pack(from, view.dtype, begin, count, cols, {to, 1, 0}, stream_);
    });
    view.data = to;
    view.dtype = DType::kBF16;
    to += bytes;
  }
}

void CudaBackend::place_experts(std::span<ExpertWeights> experts) {
  if (experts.empty() || experts[0].gate.empty()) return;
  set_device(device_);
  const int64_t width = experts[0].gate.rows, hidden = experts[0].gate.cols, count = int64_t(experts.size());
  const int64_t out = experts[0].down.rows;  // hidden, but for an MLP with another number of outputs
  const bool gated = !experts[0].up.empty();
  const int parts = gated ? 2 : 1;  // gate and up share an array
  const auto gate_up_bytes = [&](const ExpertWeights& e) { return parts * packed_bytes(width, hidden, form_of(e.gate)); };
  const auto down_bytes = [&](const ExpertWeights& e) { return packed_bytes(out, width, form_of(e.down)); };
  int64_t gate_ups = 0, downs = 0;
  for (const ExpertWeights& e : experts) {
    if (e.up.empty() == gated) invalid("experts", "all experts of a layer must have up or none");
    if (gated && !(form_of(e.gate) == form_of(e.up))) invalid("experts", "gate and up of an expert must have the same form");
    gate_ups += round_up(gate_up_bytes(e), kAlignment), downs += round_up(down_bytes(e), kAlignment);
  }
  char *gate_up_at = allocate_weights(gate_ups), *down_at = allocate_weights(downs);
  const auto load = [&](WeightView& view, const PackTarget& target, int64_t rows, int64_t cols) {
    if (view.rows != rows || view.cols != cols) invalid("experts", "all experts of a layer must have the same shape");
    pack_weight(view, target);
  };
  for (ExpertWeights& e : experts) {
    const int64_t bytes = round_up(gate_up_bytes(e), kAlignment), more = round_up(down_bytes(e), kAlignment);
    load(e.gate, {gate_up_at, parts, 0}, width, hidden);
    if (gated) load(e.up, {gate_up_at, 2, 1}, width, hidden);
    load(e.down, {down_at, 1, 0}, out, width);
    gate_up_at += bytes;
    down_at += more;
  }
  // The biases of all experts as float32, one expert's after the other's.
  for (WeightView ExpertWeights::* member : {&ExpertWeights::gate_bias, &ExpertWeights::up_bias, &ExpertWeights::down_bias}) {
    const int64_t size = (experts[0].*member).cols;
    if ((experts[0].*member).empty()) continue;
    float* to = reinterpret_cast<float*>(allocate_weights(checked_mul(count, size * 4, "weights")));
    for (ExpertWeights& e : experts) {
      WeightView& view = e.*member;
      if (view.empty() || view.cols != size) invalid("experts", "all experts of a layer must have the same biases");
      loader_->load(view, [&](const void* values, int64_t, int64_t) { to_float32(values, view.dtype, size, to, stream_); });
      view.data = to;
      view.dtype = DType::kF32;
      to += size;
    }
  }
}

}  // namespace lynx_rt
