// Arrays that own memory of a backend.
#pragma once
#include <cstdint>
#include <utility>

#include "backend/backend.h"

namespace lynx_rt {

// An array in a backend's memory. Move-only; the backend must outlive it.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(Backend& backend, int64_t count, const char* what)
      : backend_(&backend),
        bytes_(checked_mul(count, int64_t(sizeof(T)), what)),
        data_(static_cast<T*>(backend.allocate(bytes_, what))) {}
  ~DeviceArray() {
    if (data_) backend_->release(data_, bytes_);
  }
  DeviceArray(DeviceArray&& o) noexcept : backend_(o.backend_), bytes_(o.bytes_), data_(std::exchange(o.data_, nullptr)) {}
  DeviceArray& operator=(DeviceArray&& o) noexcept {
    std::swap(backend_, o.backend_);
    std::swap(bytes_, o.bytes_);
    std::swap(data_, o.data_);
    return *this;
  }
  T* get() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  int64_t bytes_ = 0;
  T* data_ = nullptr;
};

// Rows that enter matrix products: float32 values and, where the backend's products read another form (CUDA: bfloat16), that form
// as well. Only norms and attention() can write them, and they write both forms at once, so the two never differ. Move-only, because
// a copy would keep the shape of an earlier write.
class Activations {
 public:
  Activations() = default;
  // Memory for at most max_rows rows of at most max_columns values; no rows yet.
  Activations(Backend& backend, int64_t max_rows, int64_t max_columns, const char* what)
      : max_rows_(max_rows),
        max_columns_(max_columns),
        f32_(backend, checked_mul(max_rows, max_columns, what), what),
        rounded_(backend, checked_mul(max_rows, backend.rounded_row_bytes(max_columns), what), what),
        values_(f32_.get()) {}
  // Wraps the caller's float32 rows, which must outlive the object. Each product that reads them rounds them itself.
  Activations(const float* x, int64_t num_rows, int64_t num_columns)
      : values_(x), num_rows_(num_rows), num_columns_(num_columns) {}
  Activations(Activations&&) = default;
  Activations& operator=(Activations&&) = default;

  const float* f32() const { return values_; }  // [num_rows(), num_columns()]
  int64_t num_rows() const { return num_rows_; }
  int64_t num_columns() const { return num_columns_; }
  int64_t bytes() const { return f32_.bytes() + rounded_.bytes(); }

 private:
  friend class Backend;

  int64_t max_rows_ = 0, max_columns_ = 0;
  DeviceArray<float> f32_;
  DeviceArray<char> rounded_;
  const float* values_ = nullptr;
  int64_t num_rows_ = 0, num_columns_ = 0;  // of the last write
};

}  // namespace lynx_rt
