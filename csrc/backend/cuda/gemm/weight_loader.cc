#include "backend/cuda/gemm/weight_loader.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/gemm/packed.h"

namespace lynx_rt::cuda {

WeightLoader::WeightLoader(Stream stream, int num_threads) : stream_(stream), pool_(num_threads), slots_(kSlots) {}

WeightLoader::Slot& WeightLoader::next_slot(int64_t bytes) {
  Slot& slot = slots_[next_++ % slots_.size()];
  slot.free.wait();
  if (bytes > slot.bytes) {
    slot.bytes = bytes;
    slot.host = allocate_pinned(slot.bytes, "weight_loader");
    slot.device = allocate_device(slot.bytes, "weight_loader");
  }
  return slot;
}

void WeightLoader::load(const WeightView& weight, const Take& take) {
  const int64_t row_bytes = weight.row_bytes();
  const int64_t piece = std::max<int64_t>(kBlockRows, kSlotBytes / std::max<int64_t>(1, row_bytes) / kBlockRows * kBlockRows);
  for (int64_t begin = 0; begin < weight.rows; begin += piece) {
    const int64_t count = std::min(piece, weight.rows - begin), bytes = count * row_bytes;
    Slot& slot = next_slot(std::min(piece, weight.rows) * row_bytes);
    const char* from = static_cast<const char*>(weight.row(begin));
    char* to = static_cast<char*>(slot.host.get());
    constexpr int64_t kChunk = 1 << 20;
    pool_.parallel_for(ceil_div(bytes, kChunk), [&](int64_t i, int) {
      std::memcpy(to + i * kChunk, from + i * kChunk, size_t(std::min(kChunk, bytes - i * kChunk)));
    });
    copy_async(slot.device.get(), to, size_t(bytes), stream_);
    take(slot.device.get(), begin, count);
    slot.free.record(stream_);
  }
}

}  // namespace lynx_rt::cuda
