// Quantises weights when they are placed. A task is a few panels of one matrix. Layout and rounding: kernels/quant.h.
#include "backend/cpu/quantize.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kernels/quant.h"
#include "base/memory.h"

namespace lynx_rt {

using cpu::Quant;

namespace {

constexpr int64_t kPanelsPerTask = 4;

int bits(QuantFormat format) { return format == QuantFormat::kInt8 ? 8 : 4; }

}  // namespace

WeightView view_on_cpu(const WeightView& w, WeightUse use, QuantFormat quantization) {
  const bool expert = use == WeightUse::kExpert;
  const bool product = expert || use == WeightUse::kMatrix || use == WeightUse::kHead;
  if (quantization == QuantFormat::kPlain || !product || w.empty() || w.format != QuantFormat::kPlain) return w;
  // Int8 with quantization="int4" as well: attention and the output projection are a small part of an MoE model's bytes, and their
  // error costs more quality than the experts' (bench/results/eval-lynx-nano-quantization.md).
  const QuantFormat format = expert ? quantization : QuantFormat::kInt8;
  return {nullptr, w.dtype, w.rows, w.cols, format, Quant::row_bytes(w.cols, bits(format))};
}

// Replaces the weights, which have one use, by quantised ones, in one piece of memory.
void CpuBackend::quantize(std::span<WeightView* const> weights, WeightUse use) {
  struct Task {
    WeightView from;
    int64_t first, panels;
    char* to;
  };
  int64_t bytes = 0;
  for (const WeightView* w : weights) bytes += round_up(w->rows, Quant::kPanel) * view_on_cpu(*w, use, quantization_).row_bytes();
  if (!store_.filled()) {
    const int64_t free = free_memory_bytes();
    if (bytes > free)
      fail(ErrorCode::kOutOfMemory, "quantization", "quantization: the next weights take ", bytes, " bytes, but ", free,
           " are free");
  }
  char* to = store_.next(bytes);
  std::vector<Task> tasks;
  for (WeightView* w : weights) {
    const WeightView from = *w;
    *w = view_on_cpu(from, use, quantization_);
    w->data = to;
    const int64_t panels = ceil_div(from.rows, Quant::kPanel), panel_bytes = Quant::kPanel * w->row_bytes();
    for (int64_t p = 0; p < panels; p += kPanelsPerTask)
      tasks.push_back({from, p, std::min(kPanelsPerTask, panels - p), to + p * panel_bytes});
    to += panels * panel_bytes;
  }
  if (store_.filled()) return;

  const QuantFormat format = weights[0]->format;
  const auto quantize_group = format == QuantFormat::kInt8 ? quant_kernels_.quantize_int8 : quant_kernels_.quantize_int4;
  const int64_t group_bytes = Quant::group_bytes(bits(format));
  pool_.parallel_for(int64_t(tasks.size()), [&](int64_t i, int) {
    const Task& task = tasks[size_t(i)];
    const WeightView& w = task.from;
    char* group = task.to;
    for (int64_t p = task.first; p < task.first + task.panels; ++p)
      for (int64_t column = 0; column < w.cols; column += Quant::kGroup, group += group_bytes) {
        alignas(64) float values[Quant::kPanel][Quant::kGroup] = {};
        const int64_t count = std::min(Quant::kGroup, w.cols - column);
        for (int64_t r = 0; r < Quant::kPanel && p * Quant::kPanel + r < w.rows; ++r) {
          const char* row = static_cast<const char*>(w.row(p * Quant::kPanel + r));
          kernels_.to_f32(row + column * dtype_size(w.dtype), w.dtype, count, values[r]);
        }
        quantize_group(values[0], group);
      }
  });
}

WeightView CpuBackend::place(const WeightView& weight, WeightUse use) {
  if (view_on_cpu(weight, use, quantization_).format == weight.format) return weight;
  WeightView placed = weight;
  WeightView* one = &placed;
  quantize({&one, 1}, use);
  return placed;
}

void CpuBackend::place_experts(std::span<ExpertWeights> experts) {
  if (quantization_ == QuantFormat::kPlain) return;
  std::vector<WeightView*> all;
  for (ExpertWeights& e : experts)
    for (WeightView* w : {&e.gate, &e.up, &e.down})
      if (view_on_cpu(*w, WeightUse::kExpert, quantization_).format != w->format) all.push_back(w);
  if (!all.empty()) quantize(all, WeightUse::kExpert);
}

WeightView CpuBackend::keep(const WeightView& weight, int64_t size) {
  if (!store_.keeps()) return weight;
  char* to = store_.next(size);
  if (!store_.filled()) std::memcpy(to, weight.data, size_t(size));
  const char* from = static_cast<const char*>(weight.data);
  const auto move = [&](const void* p) { return p ? to + (static_cast<const char*>(p) - from) : nullptr; };
  WeightView kept = weight;
  kept.data = to;
  if (weight.format != QuantFormat::kBlocks) return kept;
  BlockRows& b = kept.blocks;
  b.data = move(b.data), b.scales = move(b.scales), b.zeros = move(b.zeros);
  return kept;
}

void CpuBackend::reserve(const StepLimits&) { store_.save(); }

int64_t quantized_groups(const WeightView& weight) { return Quant::groups(weight.cols); }

void read_quantized(const WeightView& w, int8_t* values, float* scales) {
  if (w.format == QuantFormat::kPlain) invalid("weight", "expected a quantised one");
  const int b = bits(w.format);
  for (int64_t n = 0; n < w.rows; ++n) {
    const int64_t r = n % Quant::kPanel;
    const char* group = static_cast<const char*>(w.row(n - r));
    for (int64_t column = 0; column < w.cols; column += Quant::kGroup, group += Quant::group_bytes(b)) {
      std::memcpy(scales++, group + 4 * r, 4);
      for (int64_t c = 0; c < Quant::kGroup && column + c < w.cols; ++c) {
        const uint8_t u = uint8_t(group[Quant::kLine + c / 4 * b / 8 * Quant::kLine + 4 * r + c % 4]);
        *values++ = int8_t(b == 8 ? u - 128 : (c / 4 % 2 ? u >> 4 : u & 15) - 8);
      }
    }
  }
}

}  // namespace lynx_rt
