// Arrays in device memory for tests, whose source runs emulated and on a GPU.
#pragma once
#include <vector>

#include "backend/cuda/runtime/runtime.h"

template <class T>
class DeviceVector {
 public:
  DeviceVector() = default;
  explicit DeviceVector(size_t count)
      : count_(count), memory_(lynx_rt::cuda::allocate_device(int64_t(count * sizeof(T)), "test")) {}
  explicit DeviceVector(const std::vector<T>& values) : DeviceVector(values.size()) { write(values); }

  T* get() const { return static_cast<T*>(memory_.get()); }
  size_t size() const { return count_; }
  void write(const std::vector<T>& values) {
    lynx_rt::cuda::copy_async(get(), values.data(), values.size() * sizeof(T), {});
    lynx_rt::cuda::synchronize({});
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    lynx_rt::cuda::copy_async(values.data(), get(), count_ * sizeof(T), {});
    lynx_rt::cuda::synchronize({});
    return values;
  }

 private:
  size_t count_ = 0;
  lynx_rt::cuda::DeviceMemory memory_;
};
