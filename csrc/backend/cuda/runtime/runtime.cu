// runtime.h over the CUDA runtime, which is linked statically, so that the library can be loaded on a machine without a driver.
#include <cuda_runtime.h>

#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/runtime.h"
#include "base/error.h"

#ifndef LYNX_RT_CUDA_ARCHITECTURES
#define LYNX_RT_CUDA_ARCHITECTURES "not known"
#endif

namespace lynx_rt::cuda {

namespace {

__global__ void probe_kernel() {}

}  // namespace

// --- devices

int device_count(std::string* why) {
  int count = 0;  // stays 0 where there is no driver
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  if (why && status == cudaErrorInsufficientDriver) {  // also where there is no driver at all
    *why = str_cat("no NVIDIA driver was found, or one older than CUDA ", CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10,
                   " needs");
  } else if (why) {
    *why = status == cudaSuccess ? "no CUDA-capable device is detected" : cudaGetErrorString(status);
  }
  cudaGetLastError();
  return 0;
}

DeviceProperties device_properties(int device) {
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, device), "device");
  DeviceProperties out;
  out.name = p.name;
  out.major = p.major;
  out.minor = p.minor;
  out.num_sms = p.multiProcessorCount;
  out.total_memory = int64_t(p.totalGlobalMem);
  out.max_shared_per_block = int64_t(p.sharedMemPerBlockOptin);
  return out;
}

void set_device(int device) { check(cudaSetDevice(device), "device"); }

MemoryInfo memory_info() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "device memory");
  return {int64_t(free), int64_t(total)};
}

void check_architecture(const DeviceProperties& properties) {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status == cudaSuccess) return;
  cudaGetLastError();
  fail(ErrorCode::kUnsupported, "device", "device: ", properties.name, " has compute capability ", properties.major, ".",
       properties.minor, ", and this build has code for ", LYNX_RT_CUDA_ARCHITECTURES, " (", cudaGetErrorString(status),
       "); build with LYNX_RT_CUDA_ARCHITECTURES=", properties.major, properties.minor);
}

// --- queueing

void copy_async(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.handle), "copy");
}
void fill_async(void* to, int byte, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemsetAsync(to, byte, bytes, stream.handle), "fill");
}
void synchronize(Stream stream) { check(cudaStreamSynchronize(stream.handle), "device"); }

// --- owners. Freeing only fails after an earlier failure, which has been reported, so its error is cleared.

void free_stream(CUstream_st* stream) noexcept {
  if (cudaStreamDestroy(stream) != cudaSuccess) cudaGetLastError();
}
void free_event(CUevent_st* event) noexcept {
  if (cudaEventDestroy(event) != cudaSuccess) cudaGetLastError();
}
void free_device(void* p) noexcept {
  if (cudaFree(p) != cudaSuccess) cudaGetLastError();
}
void free_pinned(void* p) noexcept {
  if (cudaFreeHost(p) != cudaSuccess) cudaGetLastError();
}
void free_graph(CUgraphExec_st* graph) noexcept {
  if (cudaGraphExecDestroy(graph) != cudaSuccess) cudaGetLastError();
}

OwnedStream make_stream() {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  return OwnedStream(stream);
}

OwnedStream make_copy_stream() { return make_stream(); }

DeviceMemory allocate_device(int64_t bytes, const char* what) {
  if (bytes <= 0) return {};
  void* p = nullptr;
  const cudaError_t status = cudaMalloc(&p, size_t(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const MemoryInfo memory = memory_info();
    fail(ErrorCode::kOutOfMemory, what, what, ": needs ", bytes, " bytes of device memory, but ", memory.free, " of ",
         memory.total, " are free");
  }
  check(status, what);
  DeviceMemory memory(p);
  check(cudaMemset(p, 0, size_t(bytes)), what);
  check(cudaStreamSynchronize(nullptr), what);  // other streams do not wait for this one
  return memory;
}

PinnedMemory allocate_pinned(int64_t bytes, const char* what) {
  if (bytes <= 0) return {};
  void* p = nullptr;
  const cudaError_t status = cudaMallocHost(&p, size_t(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorCode::kOutOfMemory, what, what, ": cannot pin ", bytes, " bytes of host memory");
  }
  check(status, what);
  return PinnedMemory(p);
}

Event::Event() {
  cudaEvent_t event;
  check(cudaEventCreate(&event), "event");
  event_ = Owner<CUevent_st*, free_event>(event);
}
void Event::record(Stream stream) { check(cudaEventRecord(event_.get(), stream.handle), "event"); }
bool Event::done() const {
  const cudaError_t status = cudaEventQuery(event_.get());
  if (status == cudaErrorNotReady) return false;
  check(status, "event");
  return true;
}
void Event::wait() const { check(cudaEventSynchronize(event_.get()), "event"); }
float Event::elapsed(const Event& begin, const Event& end) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin.event_.get(), end.event_.get()), "event");
  return milliseconds;
}

Graph Graph::capture(Stream stream, const std::function<void()>& record) {
  check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal), "graph");
  cudaGraph_t recorded = nullptr;
  try {
    record();
  } catch (...) {
    cudaStreamEndCapture(stream.handle, &recorded);
    if (recorded) cudaGraphDestroy(recorded);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream.handle, &recorded), "graph");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, recorded, 0);
  cudaGraphDestroy(recorded);
  check(status, "graph");
  Graph graph;
  graph.exec_ = Owner<CUgraphExec_st*, free_graph>(exec);
  return graph;
}
void Graph::launch(Stream stream) const { check(cudaGraphLaunch(exec_.get(), stream.handle), "graph"); }

}  // namespace lynx_rt::cuda
