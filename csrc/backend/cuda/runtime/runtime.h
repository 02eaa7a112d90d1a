// The CUDA runtime as this project uses it: streams, events, memory, graphs and devices as objects that free themselves.
// Sees no CUDA header, so that a host build can put tests/simt/runtime_simt.cc in the place of runtime.cc. Failures of the
// runtime throw kDevice with its own text, a full device kOutOfMemory. One device per process side: calls go to the device of the
// last set_device() of the calling thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace lynx_rt::cuda {

// Where launches and copies queue up.
struct Stream {
  CUstream_st* handle = nullptr;
  // Kernels start their prologue while the one before drains (programmatic dependent launch, sm_90 on). Every kernel keeps the
  // contract of ptx.cuh's grid_wait(), so that results do not depend on it.
  bool dependent_launch = false;
};

// --- devices

struct DeviceProperties {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;
  int num_sms = 0;
  int64_t total_memory = 0;          // bytes
  int64_t max_shared_per_block = 0;  // bytes that a block can have when it asks
};

struct MemoryInfo {
  int64_t free, total;  // bytes of the device
};

// 0 where there is no driver, no device, or the driver is too old, with the reason in `why` where given. Never throws.
int device_count(std::string* why = nullptr);
DeviceProperties device_properties(int device);
void set_device(int device);
MemoryInfo memory_info();
// Throws kUnsupported where this build has no code that the device of the properties runs, naming both.
void check_architecture(const DeviceProperties& properties);

// --- queueing. Host memory that takes part is pinned, or the call may wait.

void copy_async(void* to, const void* from, size_t bytes, Stream stream);
void fill_async(void* to, int byte, size_t bytes, Stream stream);
void synchronize(Stream stream);  // waits for all that is queued, and throws what failed there

// --- owners; movable, empty when default-made

template <class Handle, void (*kFree)(Handle) noexcept>
class Owner {
 public:
  Owner() = default;
  explicit Owner(Handle handle) : handle_(handle) {}
  ~Owner() {
    if (handle_) kFree(handle_);
  }
  Owner(Owner&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  Owner& operator=(Owner&& o) noexcept {
    std::swap(handle_, o.handle_);
    return *this;
  }
  Handle get() const { return handle_; }
  Handle release() { return std::exchange(handle_, nullptr); }  // whoever calls frees it

 private:
  Handle handle_ = nullptr;
};

void free_stream(CUstream_st*) noexcept;
void free_event(CUevent_st*) noexcept;
void free_device(void*) noexcept;
void free_pinned(void*) noexcept;
void free_graph(CUgraphExec_st*) noexcept;

using OwnedStream = Owner<CUstream_st*, free_stream>;
using DeviceMemory = Owner<void*, free_device>;
using PinnedMemory = Owner<void*, free_pinned>;

OwnedStream make_stream();
// Zero-filled. Throws kOutOfMemory naming `what`, the bytes asked for, those free and those there are.
DeviceMemory allocate_device(int64_t bytes, const char* what);
PinnedMemory allocate_pinned(int64_t bytes, const char* what);

class Event {
 public:
  Event();
  void record(Stream stream);
  void wait() const;  // blocks until the recorded work is done; returns at once where none was recorded
  // Milliseconds between two recorded and finished events.
  static float elapsed(const Event& begin, const Event& end);

 private:
  Owner<CUevent_st*, free_event> event_;
};

// A recorded sequence of launches and copies.
class Graph {
 public:
  Graph() = default;
  // Calls record(), which queues on `stream`; what it queues is recorded and not run. Where it throws, nothing stays queued.
  static Graph capture(Stream stream, const std::function<void()>& record);
  void launch(Stream stream) const;
  bool empty() const { return exec_.get() == nullptr; }

 private:
  Owner<CUgraphExec_st*, free_graph> exec_;
};

}  // namespace lynx_rt::cuda
