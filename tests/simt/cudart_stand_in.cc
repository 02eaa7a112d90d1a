// A stand-in for the CUDA runtime that has one device and does nothing. It prints the order in which a program registers its kernels
// and asks for them, so that errors in that order show without a GPU. Like the runtime, it only knows a kernel after the static
// initialisers of the kernel's file have registered it.
#include <cstdio>
#include <cstdlib>
#include <set>

namespace {

constexpr int kSuccess = 0, kInvalidDeviceFunction = 98, kNoDevice = 100;

std::set<const void*>& registered() {
  static std::set<const void*> functions;
  return functions;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*, int*) {
  std::printf("register %s\n", name);
  registered().insert(function);
}

int cudaGetDeviceCount(int* count) {
  *count = std::getenv("STAND_IN_NO_DEVICE") ? 0 : 1;
  std::printf("count devices\n");
  return *count ? kSuccess : kNoDevice;
}
int cudaGetDeviceProperties(char* properties, int) {
  *properties = 0;  // an empty name, which is the first member
  return kSuccess;
}
int cudaFuncGetAttributes(void*, const void* function) {
  const bool known = registered().count(function) != 0;
  std::printf("attributes of a kernel that is %s\n", known ? "registered" : "not registered");
  return known ? kSuccess : kInvalidDeviceFunction;
}
const char* cudaGetErrorString(int) { return "an error of the stand-in"; }

// Functions to which runtime.cu refers and which a start does not call.
#define NOTHING(name) \
  int name() { return kSuccess; }
NOTHING(__cudaGetKernel)
NOTHING(__cudaLaunchKernel)
NOTHING(__cudaPopCallConfiguration)
NOTHING(__cudaPushCallConfiguration)
NOTHING(cudaEventCreate)
NOTHING(cudaEventDestroy)
NOTHING(cudaEventElapsedTime)
NOTHING(cudaEventQuery)
NOTHING(cudaEventRecord)
NOTHING(cudaEventSynchronize)
NOTHING(cudaFree)
NOTHING(cudaFreeHost)
NOTHING(cudaGetLastError)
NOTHING(cudaGraphDestroy)
NOTHING(cudaGraphExecDestroy)
NOTHING(cudaGraphInstantiate)
NOTHING(cudaGraphLaunch)
NOTHING(cudaMalloc)
NOTHING(cudaMallocHost)
NOTHING(cudaMemGetInfo)
NOTHING(cudaMemcpyAsync)
NOTHING(cudaMemset)
NOTHING(cudaMemsetAsync)
NOTHING(cudaSetDevice)
NOTHING(cudaStreamBeginCapture)
NOTHING(cudaStreamCreateWithFlags)
NOTHING(cudaStreamDestroy)
NOTHING(cudaStreamEndCapture)
NOTHING(cudaStreamSynchronize)

}  // extern "C"
