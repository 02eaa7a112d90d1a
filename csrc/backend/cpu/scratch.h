// Grow-only scratch memory: after the largest batch has been seen, no call allocates.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace lynx_rt {

template <class T>
class Scratch {
 public:
  // Returns at least `count` elements, 64-byte aligned, with unspecified contents. Invalidates the result of an earlier call.
  T* get(int64_t count) {
    if (count > capacity_) {
      data_.reset();
      size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
      data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      if (!data_) throw std::bad_alloc();
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace lynx_rt
