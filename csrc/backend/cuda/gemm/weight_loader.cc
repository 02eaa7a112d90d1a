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
  // The parts of a piece: bytes of a row, from row to row in host memory, and with the zeros after them on the device. `shared` rows
  // have one row of the part, of which the first one is number `first`.
  struct Part {
    const void* rows;
    int64_t bytes, distance, padded, shared = 1, first = 0, at = 0;
  };
  const int64_t groups = ceil_div(weight.cols, from.group), scale_bytes = groups * scale_size(from.scale_type);
  const int64_t code_bytes = weight.cols / block_size(from.code).columns * block_size(from.code).bytes;
  const int64_t padded_bytes = round_up(weight.cols, kBlockColumns) / block_size(from.code).columns * block_size(from.code).bytes;
  Part parts[] = {{from.data, code_bytes, from.row_bytes, padded_bytes},
                  {from.scales, scale_bytes, from.scale_row_bytes, scale_bytes, from.scale_rows, from.first_scale_row},
                  {from.zeros, from.zeros ? groups : 0, from.zero_row_bytes, from.zeros ? groups : 0}};
  const int64_t row_bytes = std::max<int64_t>(1, parts[0].padded + parts[1].padded + parts[2].padded);
  const int64_t piece = std::min(round_up(weight.rows, kBlockRows),
                                 std::max<int64_t>(kBlockRows, kSlotBytes / row_bytes / kBlockRows * kBlockRows));
  int64_t bytes = 0;
  for (Part& part : parts) {
    part.at = bytes;
    bytes = round_up(bytes + piece * part.padded, 16);
  }
  for (int64_t begin = 0; begin < weight.rows; begin += piece) {
    const int64_t count = std::min(piece, weight.rows - begin);
    Slot& slot = next_slot(bytes);
    char *host = static_cast<char*>(slot.host.get()), *device = static_cast<char*>(slot.device.get());
    pool_.parallel_for(ceil_div(count, kBlockRows), [&](int64_t task, int) {
      const int64_t first = task * kBlockRows, last = std::min(count, first + kBlockRows);
      for (const Part& part : parts)
        for (int64_t row = first; part.rows && row < last; ++row) {
          const int64_t from_row = (part.first + begin + row) / part.shared;
          char* to = host + part.at + row * part.padded;
          std::memcpy(to, static_cast<const char*>(part.rows) + from_row * part.distance, size_t(part.bytes));
          std::memset(to + part.bytes, 0, size_t(part.padded - part.bytes));
        }
    });
    copy_async(device, host, size_t(bytes), stream_);
    BlockRows rows = from;
    rows.data = device, rows.row_bytes = parts[0].padded;
    rows.scales = device + parts[1].at, rows.scale_row_bytes = parts[1].bytes;
    rows.scale_rows = 1, rows.first_scale_row = 0;
    rows.zeros = from.zeros ? device + parts[2].at : nullptr, rows.zero_row_bytes = parts[2].bytes;
    take(rows, begin, count);
    slot.free.record(stream_);
  }
}

}  // namespace lynx_rt::cuda
