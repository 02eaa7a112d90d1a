// Replaces csrc/backend/cuda/runtime/runtime.cu in host builds: one emulated device whose memory is the host's. Everything runs when
// it is queued, except while a graph is captured.
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "backend/cuda/runtime/runtime.h"
#include "base/error.h"
#include "simt.h"

struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};
// A stream of copies, which run when an event recorded on it is found to be done. Until then their targets hold poison.
struct CUstream_st {
  std::vector<std::function<void()>> copies;

  void run() {
    for (const auto& copy : copies) copy();
    copies.clear();
  }
};
struct CUevent_st {
  CUstream_st* stream;
  int lag;  // so many times done() says no
};

namespace {

CUgraphExec_st* capturing = nullptr;
int64_t device_bytes_used = 0;

// Bytes before every allocation; they keep the alignment that cudaMalloc gives.
constexpr size_t kHeader = 256;

// Allocates exactly the size asked for, so that AddressSanitizer sees an overrun.
void* allocate(int64_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, kHeader, size_t(bytes) + kHeader)) throw std::bad_alloc();
  std::memcpy(p, &bytes, sizeof bytes);
  std::memset(static_cast<char*>(p) + kHeader, 0, size_t(bytes));
  return static_cast<char*>(p) + kHeader;
}

int64_t release(void* p) {
  int64_t bytes;
  std::memcpy(&bytes, static_cast<char*>(p) - kHeader, sizeof bytes);
  std::free(static_cast<char*>(p) - kHeader);
  return bytes;
}

// Returns the bytes of the emulated device: SIMT_DEVICE_BYTES, or 1 GiB.
int64_t device_bytes() {
  const char* text = std::getenv("SIMT_DEVICE_BYTES");
  return text ? std::atoll(text) : int64_t{1} << 30;
}

}  // namespace

namespace simt {

int captures = 0;
int copy_lag = 0;

void queue(std::function<void()> work) {
  if (capturing) {
    capturing->work.push_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace simt

namespace lynx_rt::cuda {

// SIMT_DEVICES=0 is a machine without a GPU.
int device_count(std::string* why) {
  const char* text = std::getenv("SIMT_DEVICES");
  const int count = text ? std::atoi(text) : 1;
  if (count == 0 && why) *why = "no CUDA-capable device is detected";
  return count;
}

DeviceProperties device_properties(int) {
  DeviceProperties p;
  p.name = "emulation on the CPU";
  p.major = 9;
  p.num_sms = 3;  // few and odd, so that persistent kernels run their loops more than once
  p.total_memory = device_bytes();
  p.max_shared_per_block = 99 * 1024;  // the least of the supported architectures
  return p;
}

void set_device(int) {}
MemoryInfo memory_info() { return {device_bytes() - device_bytes_used, device_bytes()}; }
void check_architecture(const DeviceProperties&) {}

void copy_async(void* to, const void* from, size_t bytes, Stream stream) {
  if (stream.handle) {
    std::memset(to, 0xff, bytes);
    stream.handle->copies.push_back([=] { std::memcpy(to, from, bytes); });
    return;
  }
  simt::queue([=] {
    if (bytes) std::memcpy(to, from, bytes);
  });
}
void fill_async(void* to, int byte, size_t bytes, Stream) {
  simt::queue([=] {
    if (bytes) std::memset(to, byte, bytes);
  });
}
void synchronize(Stream stream) {
  if (stream.handle) return stream.handle->run();
  if (capturing) fail(ErrorCode::kDevice, "synchronize", "synchronize: the stream is being captured");
}

void free_stream(CUstream_st* stream) noexcept { delete stream; }
void free_event(CUevent_st* event) noexcept { delete event; }
void free_device(void* p) noexcept { device_bytes_used -= release(p); }
void free_pinned(void* p) noexcept { release(p); }
void free_graph(CUgraphExec_st* graph) noexcept { delete graph; }

OwnedStream make_stream() { return {}; }
OwnedStream make_copy_stream() { return OwnedStream(new CUstream_st); }

DeviceMemory allocate_device(int64_t bytes, const char* what) {
  if (capturing) fail(ErrorCode::kDevice, what, what, ": allocated while a graph is captured");
  if (bytes > device_bytes() - device_bytes_used)
    fail(ErrorCode::kOutOfMemory, what, what, ": needs ", bytes, " bytes of device memory, but ", memory_info().free, " of ",
         memory_info().total, " are free");
  device_bytes_used += bytes;
  return DeviceMemory(allocate(bytes));
}
PinnedMemory allocate_pinned(int64_t bytes, const char*) { return PinnedMemory(allocate(bytes)); }

Event::Event() = default;
void Event::record(Stream stream) {
  if (stream.handle) event_ = Owner<CUevent_st*, free_event>(new CUevent_st{stream.handle, simt::copy_lag});
}
bool Event::done() const {
  if (CUevent_st* event = event_.get()) {
    if (event->lag-- > 0) return false;
    event->stream->run();
  }
  return true;
}
void Event::wait() const {
  if (CUevent_st* event = event_.get()) {
    event->lag = 0;
    event->stream->run();
  }
}
float Event::elapsed(const Event&, const Event&) { return 0; }

Graph Graph::capture(Stream, const std::function<void()>& record) {
  if (capturing) fail(ErrorCode::kDevice, "graph", "graph: another capture is under way");
  Graph graph;
  graph.exec_ = Owner<CUgraphExec_st*, free_graph>(new CUgraphExec_st);
  capturing = graph.exec_.get();
  try {
    record();
  } catch (...) {
    capturing = nullptr;
    throw;
  }
  capturing = nullptr;
  ++simt::captures;
  return graph;
}
void Graph::launch(Stream) const {
  for (const auto& work : exec_.get()->work) simt::queue(work);
}

}  // namespace lynx_rt::cuda
