// What the steps of route.cu share: the kernel's parameters, its shared memory, sets of experts, and the k best of a row.
#pragma once
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/route.h"

namespace lynx_rt::cuda::route_state {

constexpr int kWords = kMaxRouteExperts / 32;
constexpr int kMaxBins = 16;  // the largest beta

// Offsets of the arrays that follow Shared in shared memory.
struct RouteLayout {
  int votes;      // uint64 [E]
  int partial;    // uint64 [threads / E, E] sums of the votes of some rows
  int retained;   // double [T]
  int best;       // float [T] best score
  int count;      // uint32 [E] pairs of an expert, then its first row
  int histogram;  // uint16 [warps, E] pairs of an expert in a warp's range, then those in ranges before
  int chosen;     // int16 [T, k] own choice, then the final one
  int assigned;   // int16 [T, k]
  int confident;  // uint8 [T] one expert alone is in bin 0
  int bytes;
};

struct RouteParams {
  RouteArgs args;
  RouteLayout layout;
  uint64_t theta_fraction;  // theta = theta_fraction * 2^(theta_exponent - 53)
  int theta_exponent;
  float filter;  // a float gap * filter >= number of bins proves that the exact position is beyond the last bin
};

struct Shared {
  uint64_t value[kMaxBins];                // of a vote in each bin; [0] is the top vote
  uint64_t needed;                         // votes that admit
  uint32_t wanted[kMaxRouteTopK][kWords];  // own choices by rank
  uint32_t admitted[kWords];
  uint32_t used[kWords];  // by the assignment
  uint32_t first_bad;
  uint32_t remapped;
  uint32_t num_exact;
  int num_bins;
  int num_wanted;  // distinct own choices
};

constexpr RouteLayout route_layout(int num_rows, int num_experts, int top_k, int threads) {
  RouteLayout at = {};
  int end = int(sizeof(Shared));
  const auto take = [&end](int count, int size) {
    const int begin = (end + size - 1) / size * size;
    end = begin + count * size;
    return begin;
  };
  at.votes = take(num_experts, 8);
  at.partial = take(threads / num_experts * num_experts, 8);
  at.retained = take(num_rows, 8);
  at.best = take(num_rows, 4);
  at.count = take(num_experts, 4);
  at.histogram = take(threads / 32 * num_experts, 2);
  at.chosen = take(num_rows * top_k, 2);
  at.assigned = take(num_rows * top_k, 2);
  at.confident = take(num_rows, 1);
  at.bytes = end;
  return at;
}
static_assert(route_layout(kMaxRouteRows, kMaxRouteExperts, kMaxRouteTopK, 1024).bytes < 96 * 1024, "fits every architecture");

template <class T>
__device__ T* shared_array(int offset) {
  return reinterpret_cast<T*>(dynamic_shared() + offset);
}
__device__ inline Shared& shared_state() { return *shared_array<Shared>(0); }

__device__ inline bool has_bit(const uint32_t* words, int e) { return words[e / 32] >> (e % 32) & 1; }
__device__ inline void set_bit(uint32_t* words, int e) { atomic_or(&words[e / 32], 1u << (e % 32)); }
__device__ inline int count_set(const uint32_t* words) {  // by a whole warp
  return int(reduce_add(kFullWarp, lane_id() < kWords ? uint32_t(count_bits(words[lane_id()])) : 0));
}

__device__ inline double warp_sum(double v) {
  for (int bit = 16; bit > 0; bit /= 2) v += shuffle_xor(kFullWarp, v, bit);
  return v;
}

// Integers in the order of the scores; both zeros are one value; 0 stands for no expert.
__device__ inline uint32_t to_key(float score) {
  const uint32_t bits = score == 0 ? 0 : float_bits(score);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_key(uint32_t key) { return bits_float(key >> 31 ? key ^ 0x80000000u : ~key); }

// The j-th best expert goes to lane j < k, with its key: rising rank, ties to the lower expert. Uses up `key`.
template <int kPerLane>
__device__ void pick_best(uint32_t (&key)[kPerLane], int k, int& expert, uint32_t& expert_key) {
  for (int j = 0; j < k; ++j) {
    uint32_t mine = key[0];
    int at = 0;
    LYNX_UNROLL
    for (int i = 1; i < kPerLane; ++i)
      if (key[i] > mine) mine = key[i], at = i;
    const uint32_t top = reduce_max(kFullWarp, mine);
    const int winner = int(reduce_min(kFullWarp, mine == top ? uint32_t(at * 32 + lane_id()) : 0xffffffffu));
    if (lane_id() == j) expert = winner, expert_key = top;
    LYNX_UNROLL
    for (int i = 0; i < kPerLane; ++i)
      if (i * 32 + lane_id() == winner) key[i] = 0;
  }
}

}  // namespace lynx_rt::cuda::route_state
