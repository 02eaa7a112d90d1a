// The parts of the CUDA runtime that this project uses: streams, events, memory, graphs and devices, as objects that free themselves.
// This header includes no CUDA header, so that a host build can use tests/simt/runtime_simt.cc instead of runtime.cu. Failures of the
// runtime throw kDevice with its own text, a full device throws kOutOfMemory. Calls go to the device of the calling thread's last
// set_device().
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

// The queue of launches and copies.
struct Stream {
  CUstream_st* handle = nullptr;
  // A kernel starts its prologue while the last one finishes (programmatic dependent launch, sm_90 on). Every kernel keeps the
  // contract of ptx.cuh's grid_wait(), so results do not depend on it.
  bool dependent_launch = false;
};

// --- devices

struct DeviceProperties {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;
  int num_sms = 0;
  int64_t total_memory = 0;          // bytes
  int64_t max_shared_per_block = 0;  // most bytes of shared memory that a launch may ask for
};

struct MemoryInfo {
  int64_t free, total;  // bytes of the device
};

// Returns 0 where there is no driver, no device, or the driver is too old, with the reason in `why` if given. Never throws.
int device_count(std::string* why = nullptr);
DeviceProperties device_properties(int device);
void set_device(int device);
MemoryInfo memory_info();
// Throws kUnsupported, naming device and build, where this build has no code for a device of these properties.
void check_architecture(const DeviceProperties& properties);

// --- queueing. A call with host memory that is not pinned may wait.

void copy_async(void* to, const void* from, size_t bytes, Stream stream);
void fill_async(void* to, int byte, size_t bytes, Stream stream);
void synchronize(Stream stream);  // waits for all queued work, and throws if some of it failed

// --- owners; movable, empty when default-constructed

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
  Handle release() { return std::exchange(handle_, nullptr); }  // the caller must free it

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
// Returns a stream that copies alone are queued on, which run beside the work of other streams.
OwnedStream make_copy_stream();
// Returns zero-filled memory. Throws kOutOfMemory naming `what`, the bytes asked for, the free bytes and the device's bytes.
DeviceMemory allocate_device(int64_t bytes, const char* what);
PinnedMemory allocate_pinned(int64_t bytes, const char* what);

class Event {
 public:
  Event();
  void record(Stream stream);
  bool done() const;  // whether the recorded work is done; true where none was recorded
  void wait() const;  // blocks until the recorded work is done; returns at once where none was recorded
  // Returns the milliseconds between two events that are recorded and finished.
  static float elapsed(const Event& begin, const Event& end);

 private:
  Owner<CUevent_st*, free_event> event_;
};

// A recorded sequence of launches and copies.
class Graph {
 public:
  Graph() = default;
  // Calls record(), which queues work on `stream`; the work is recorded and not run. If record() throws, nothing stays queued.
  static Graph capture(Stream stream, const std::function<void()>& record);
  void launch(Stream stream) const;
  bool empty() const { return exec_.get() == nullptr; }

 private:
  Owner<CUgraphExec_st*, free_graph> exec_;
};

}  // namespace lynx_rt::cuda
