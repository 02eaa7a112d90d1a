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

void WeightLoader::load_codes(const WeightView& weight, const TakeCodes& take) {
  const BlockRows& from = weight.blocks;
  // The parts of a piece: bytes of a row, and from row to row in host memory.
  struct Part {
    const void* rows;
    int64_t bytes, distance, at;
  };
  const int64_t groups = ceil_div(weight.cols, from.group);
  Part parts[] = {{from.data, weight.cols / block_size(from.code).columns * block_size(from.code).bytes, from.row_bytes, 0},
                  {from.scales, groups * scale_size(from.scale_type), from.scale_row_bytes, 0},
                  {from.zeros, from.zeros ? groups : 0, from.zero_row_bytes, 0}};
  const int64_t row_bytes = std::max<int64_t>(1, parts[0].bytes + parts[1].bytes + parts[2].bytes);
  const int64_t piece = std::min(round_up(weight.rows, kBlockRows),
                                 std::max<int64_t>(kBlockRows, kSlotBytes / row_bytes / kBlockRows * kBlockRows));
  int64_t bytes = 0;
  for (Part& part : parts) {
    part.at = bytes;
    bytes = round_up(bytes + piece * part.bytes, 16);
  }
  for (int64_t begin = 0; begin < weight.rows; begin += piece) {
    const int64_t count = std::min(piece, weight.rows - begin);
    Slot& slot = next_slot(bytes);
    char *host = static_cast<char*>(slot.host.get()), *device = static_cast<char*>(slot.device.get());
    pool_.parallel_for(ceil_div(count, kBlockRows), [&](int64_t task, int) {
      const int64_t first = task * kBlockRows, last = std::min(count, first + kBlockRows);
      for (const Part& part : parts)
        for (int64_t row = first; part.rows && row < last; ++row)
          std::memcpy(host + part.at + row * part.bytes, static_cast<const char*>(part.rows) + (begin + row) * part.distance,
                      size_t(part.bytes));
    });
    copy_async(device, host, size_t(bytes), stream_);
    BlockRows rows = from;
    rows.data = device, rows.row_bytes = parts[0].bytes;
    rows.scales = device + parts[1].at, rows.scale_row_bytes = parts[1].bytes;
    rows.zeros = from.zeros ? device + parts[2].at : nullptr, rows.zero_row_bytes = parts[2].bytes;
    take(rows, begin, count);
    slot.free.record(stream_);
  }
}

}  // namespace lynx_rt::cuda
