// Runs CUDA kernels on the CPU: one fiber per CUDA thread, all on one OS thread, with a switch where a thread must wait.
// tests/simt/backend/cuda/runtime/{launch.h,ptx.cuh}, which kernels and tests include, call these functions.
//
// Bugs that each way of running finds (none replaces a run on a GPU):
//   lazy copies     asynchronous copies happen at the wait: a wait that is missing or one stage short leaves poison or old data
//   eager copies    asynchronous copies happen at once: a stage that is overwritten while others still read it
//   FIFO, seeds     orders of threads: missing barriers. Seeds also interrupt threads at asynchronous copies.
//   AddressSanitizer  reads and writes outside shared and global memory
//   ThreadSanitizer   data races: barriers and sync_warp() order memory, shuffles and the scheduler's switches do not
// Dynamic shared memory is filled with 0xFF (NaN, -1) for every block.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>

namespace simt {

// Thrown where a kernel cannot go on: a deadlock, lanes that disagree, a shuffle from outside its mask, a misaligned copy. The text
// names the block and the threads that wait.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Copy { kLazy, kEager };

struct Options {
  Copy copy = Copy::kLazy;
  uint64_t seed = 0;  // 0 = FIFO
  int resident = 1;   // blocks that run interleaved
};
// Returns the options of later launches, which SIMT_COPY=lazy|eager and SIMT_SEED=n initialise.
Options& options();

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// The indices of a thread.
struct Position {
  Dim3 thread, block, block_dim, grid_dim;
  unsigned char* shared;
};
extern Position* current;  // the running thread's

// Runs body(arguments) as every thread of the grid and returns when all are done. Throws Fault, or what a thread threw.
void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(const void*), const void* arguments);

// Runs `work` now, or keeps it for the replay while a graph is captured (runtime_simt.cc).
void queue(std::function<void()> work);
extern int captures;  // number of graphs captured so far
extern int copy_lag;  // so many questions find the copies of a copy stream not done (runtime_simt.cc)

// --- calls from inside a kernel

enum class Op { kShuffle, kBallot, kMatch, kMax, kMin, kAdd, kSyncWarp, kLoadMatrix, kLoadMatrixTransposed, kMma };

// A lane's part of a warp collective.
struct Call {
  Op op;
  uint32_t mask;
  const void* in;  // shuffle: `bytes`; ballot .. add: uint32_t; load_matrix: the row; mma: MmaIn
  void* out;       // shuffle: `bytes`; ballot .. add: uint32_t; load_matrix: uint32_t[4]; mma: float[4]
  int bytes;
  int source;  // shuffle: the lane read
};
struct MmaIn {
  const uint32_t* a;  // [4]
  const uint32_t* b;  // [2]
  const float* c;     // [4]
};
void collective(const Call& call);

void sync_block();
void sync_named(int id, int threads);
void copy_async(void* shared, const void* global, int source_bytes);
void copy_commit();
void copy_wait(int left);
// Lets other threads run after an atomic access: always under ThreadSanitizer, which forgets a thread's atomic write once the thread
// itself reads the place, so that a racing access must come before; else as the seed says.
void after_atomic();

// Computes a collective whose lanes have all arrived; lanes[l] is null for lanes outside the mask. Returns null, or the error.
const char* compute(const Call* const* lanes);
const char* name(Op op);

}  // namespace simt
