// Runs CUDA kernels on the CPU: one fiber per CUDA thread, all on one OS thread, scheduled where a thread must wait. This is
// what tests/simt/backend/cuda/{launch.h,ptx.cuh} are written on; kernels and tests include those.
//
// What each way of running shows (nothing of it stands in for a run on a GPU):
//   lazy copies     asynchronous copies land at the wait: a wait that is missing or one stage short leaves poison or old data
//   eager copies    they land at the issue: a stage that is overwritten while others still read it
//   FIFO, seeds     order of threads: missing barriers. Seeds also interrupt threads at asynchronous copies.
//   AddressSanitizer  reads and writes outside shared and global memory
//   ThreadSanitizer   data races: barriers and sync_warp() order memory, shuffles and the scheduler's switches do not
// Dynamic shared memory is filled with 0xFF (NaN, -1) for every block.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>

namespace simt {

// A kernel that cannot go on: a deadlock, lanes that disagree, a shuffle from outside its mask, a misaligned copy. The text names
// the block and who waits where.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Copy { kLazy, kEager };

struct Options {
  Copy copy = Copy::kLazy;
  uint64_t seed = 0;  // 0 = FIFO
  int resident = 1;   // blocks that run interleaved
};
// Options of the launches that follow. They start as SIMT_COPY=lazy|eager and SIMT_SEED=n say.
Options& options();

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// What a thread knows of itself.
struct Position {
  Dim3 thread, block, block_dim, grid_dim;
  unsigned char* shared;
};
extern Position* current;  // of the running thread

// Runs body(arguments) as every thread of the grid and returns when all are done. Throws Fault, or what a thread threw.
void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(const void*), const void* arguments);

// Runs `work` now, or keeps it for a replay where a graph is being captured (runtime_simt.cc).
void queue(std::function<void()> work);
extern int captures;  // graphs so far

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
// After an atomic access others get a turn: always under ThreadSanitizer, which forgets a thread's atomic write once the thread
// itself reads the place, so that those who race with it must come before; else as the seed says.
void after_atomic();

// Computes a collective whose lanes have all arrived; lanes[l] is null for lanes outside the mask. Null, or what is wrong.
const char* compute(const Call* const* lanes);
const char* name(Op op);

}  // namespace simt
