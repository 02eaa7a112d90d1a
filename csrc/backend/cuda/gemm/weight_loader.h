// Streams weights from host memory to a device, plain or in codes: threads copy pieces into a ring of pinned buffers while earlier pieces are transferred
// and packed. Only the ring takes host memory, whatever the size of the weights.
#pragma once
#include <functional>
#include <vector>

#include "backend/cuda/runtime/runtime.h"
#include "base/tensor.h"
#include "base/thread_pool.h"

namespace lynx_rt::cuda {

class WeightLoader {
 public:
  static constexpr int kSlots = 3;
  static constexpr int64_t kSlotBytes = int64_t{32} << 20;

  WeightLoader(Stream stream, int num_threads);

  // Calls take(rows, row_begin, num_rows) for consecutive pieces of a matrix. `rows` is in device memory and valid for the work that
  // take() queues on the stream. Pieces begin at multiples of 16 rows. The weight may be freed when load() returns.
  using Take = std::function<void(const void* rows, int64_t row_begin, int64_t num_rows)>;
  void load(const WeightView& weight, const Take& take);

  // Does what load() does for a weight in grouped codes: take(rows, row_begin, num_rows), whose parts each lie row after row and are aligned to 16
  // bytes.
  using TakeCodes = std::function<void(const BlockRows& rows, int64_t row_begin, int64_t num_rows)>;
  void load_codes(const WeightView& weight, const TakeCodes& take);

 private:
  struct Slot {
    PinnedMemory host;
    DeviceMemory device;
    int64_t bytes = 0;
    Event free;
  };
  Slot& next_slot(int64_t bytes);

  Stream stream_;
  ThreadPool pool_;
  std::vector<Slot> slots_;
  size_t next_ = 0;
};

}  // namespace lynx_rt::cuda
