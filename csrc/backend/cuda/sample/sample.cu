// Draws each row's token in one launch with one block per row; backend/sampling.h defines a draw.
//
// Work split. A token's weight exp((logit - largest) / temperature) is rounded to a multiple of 2^-45: sums of such integers do
// not depend on their order, so the token only depends on the row and its parameters. The cut of top_k, the cut of top_p and the
// draw are one search each: at which token, from the most likely down, does the cumulative count or mass exceed a target? The search
// starts from a histogram over bins of equal width in the logit, which all searches share, and refines the bin that has the target
// by histograms over the bits of the logits as ordered integers. Each filter keeps a prefix of that order, so the mass of the prefix
// describes it. Where nothing filters, the walk is by token: a range of tokens per warp, then, of the range that has the target, a
// part per warp, and so on.
//
// A token mask is read with the logits; a logit that it excludes counts as -inf.
//
// Memory traffic: each read of a row is 4 V bytes, V / 8 more with a mask, from L2 after the first read. A row is read once for
// greedy, a little over twice where nothing filters, else 3 times and 1 to 4 times per search. All weights are computed once, and
// those of a bin once per refinement.
//
// Limits: V <= 2^18, which keeps the sums below 2^63. One block per row leaves most of a large GPU idle at few rows, and a weight
// costs a double-precision exp(), at 1/64 rate on sm_86, sm_89 and sm_120 (TODO measure on a GPU).
#include "backend/cuda/sample/sample.h"

#include <algorithm>
#include <cmath>

#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ordered_key.cuh"
#include "backend/cuda/runtime/ptx.cuh"
#include "base/error.h"

namespace lynx_rt::cuda {

namespace {

__extension__ using uint128 = unsigned __int128;

constexpr int kMaxVocab = 1 << 18;
constexpr int kMinThreads = 128, kMaxThreads = 768;  // with 1024 threads, some architectures spill registers
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kBins = 1024;
constexpr int kBinsPerLane = kBins / kWarpSize;
constexpr double kOne = 0x1p45;     // the weight 1 as an integer
constexpr double kLargestGap = 32;  // > 46 log(2): weights of larger gaps round to 0
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kLowestKey = 0x007fffffu;  // the key of -inf

// Mass is stored as two words, to which shared memory can add without a loop. A lane's bins are together, with one word between them
// and the next lane's, so that lanes that each read their own bins in turn read different banks.
struct Histogram {
  uint32_t low[kBins + kWarpSize], high[kBins + kWarpSize], count[kBins + kWarpSize];
};

struct Shared {
  Histogram coarse, fine;
  uint64_t warp_sum[kMaxWarps];
  uint32_t warp_key[kMaxWarps], warp_token[kMaxWarps], warp_flags[kMaxWarps];
  uint64_t measure_before, mass_before;  // sums over the bins before the found one
  int found;                             // bin, -1 = none
  uint32_t low_key, high_key;            // keys of the found coarse bin
};
static_assert(sizeof(Shared) <= 48 * 1024, "what a block gets without asking");

__device__ Shared& shared_state() { return *reinterpret_cast<Shared*>(dynamic_shared()); }

struct Row {
  const float* logits;
  const int32_t* mask;  // null = every token is allowed
  int vocab_size;
  float largest;
  float bin_scale;  // bins per unit of the logit
  double inverse_temperature;

  // Returns the logit that apply_token_mask() makes.
  __device__ float load(int token) const {
    const float logit = logits[token];
    const bool allowed = !mask || (uint32_t(mask[token / 32]) >> (token % 32) & 1) || logit != logit;
    return allowed ? logit : from_key(kLowestKey);
  }
  __device__ double weight(float logit) const {
    const double gap = (double(largest) - double(logit)) * inverse_temperature;
    return gap < kLargestGap ? exp(-gap) : 0.0;
  }
  // The bin never rises with the logit, as both roundings are monotonic.
  __device__ int bin(float logit) const { return int(fminf((largest - logit) * bin_scale, float(kBins - 1))); }
};
__device__ uint64_t to_mass(double weight) { return uint64_t(weight * kOne + 0.5); }

// Calls visit(token, logit) for begin + i, begin + i + stride, ..; some loads are issued before the visits.
template <class Visit>
__device__ void for_each(const Row& row, int begin, int end, int stride, Visit visit) {
  constexpr int kAhead = 4;
  for (int first = begin; first < end; first += kAhead * stride) {
    float logit[kAhead];
    LYNX_UNROLL
    for (int j = 0; j < kAhead; ++j) logit[j] = first + j * stride < end ? row.load(first + j * stride) : 0;
    LYNX_UNROLL
    for (int j = 0; j < kAhead; ++j)
      if (first + j * stride < end) visit(first + j * stride, logit[j]);
  }
}
template <class Visit>
__device__ void for_each(const Row& row, Visit visit) {
  for_each(row, int(threadIdx.x), row.vocab_size, int(blockDim.x), visit);
}

__device__ uint64_t warp_sum(uint64_t v) {
  for (int bit = 16; bit > 0; bit /= 2) v += shuffle_xor(kFullWarp, v, bit);
  return v;
}
__device__ uint64_t inclusive_scan(uint64_t v) {
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const uint64_t other = shuffle_up(kFullWarp, v, delta);
    if (lane_id() >= delta) v += other;
  }
  return v;
}
// Returns the sum over the block. By the whole block.
__device__ uint64_t block_sum(uint64_t v) {
  Shared& s = shared_state();
  v = warp_sum(v);
  if (lane_id() == 0) s.warp_sum[warp_id()] = v;
  sync_block();  // warp_sum
  uint64_t sum = 0;
  for (int w = 0; w < int(blockDim.x) / kWarpSize; ++w) sum += s.warp_sum[w];
  sync_block();  // all have read warp_sum
  return sum;
}

// --- the walk by token

// Returns the first token at which the cumulative measure(token's logit) exceeds choose(sum over the row). By the whole block.
template <class Measure, class Choose>
__device__ int walk_tokens(const Row& row, Measure measure, Choose choose) {
  Shared& s = shared_state();
  const int warps = int(blockDim.x) / kWarpSize, lane = lane_id();
  uint64_t target = 0;
  int begin = 0, end = row.vocab_size;
  for (bool whole = true; whole || end - begin > kWarpSize; whole = false) {
    const int length = (end - begin + warps - 1) / warps;
    const int from = begin + warp_id() * length, to = from + length < end ? from + length : end;
    uint64_t sum = 0;
    for_each(row, from + lane, to, kWarpSize, [&](int, float logit) { sum += measure(logit); });
    sum = warp_sum(sum);
    if (lane == 0) s.warp_sum[warp_id()] = sum;
    sync_block();  // warp_sum
    if (whole) {
      uint64_t total = 0;
      for (int w = 0; w < warps; ++w) total += s.warp_sum[w];
      target = choose(total);
    }
    int w = 0;
    while (w < warps - 1 && target >= s.warp_sum[w]) target -= s.warp_sum[w++];
    sync_block();  // all have read warp_sum
    begin += w * length;
    end = begin + length < end ? begin + length : end;
  }
  const uint64_t sum = inclusive_scan(begin + lane < end ? measure(row.load(begin + lane)) : 0);
  const uint32_t past = ballot(kFullWarp, sum > target);
  const int token = begin + (past ? lowest_bit(past) : 0);
  return token < row.vocab_size ? token : row.vocab_size - 1;  // only for parameters that sampling.h does not allow
}

// --- the walk from the most likely token down

__device__ void clear(Histogram& h) {
  for (int i = int(threadIdx.x); i < kBins + kWarpSize; i += int(blockDim.x)) h.low[i] = h.high[i] = h.count[i] = 0;
}
__device__ void add(Histogram& h, int bin, uint64_t mass, bool with_count) {
  const int i = bin + bin / kBinsPerLane;
  const uint32_t low = uint32_t(mass), before = atomic_fetch_add(&h.low[i], low);
  const uint32_t high = uint32_t(mass >> 32) + (before + low < before ? 1 : 0);
  if (high) atomic_add(&h.high[i], high);
  if (with_count) atomic_add(&h.count[i], 1);
}

// Finds the bin in which the cumulative count or mass exceeds `target`. By one warp, for the block.
__device__ void find_bin(const Histogram& h, bool by_count, uint64_t target) {
  Shared& s = shared_state();
  const auto mass_of = [&](int i) { return uint64_t(h.high[i]) << 32 | h.low[i]; };
  const int first = lane_id() * (kBinsPerLane + 1);
  uint64_t mass = 0, count = 0;
  for (int i = first; i < first + kBinsPerLane; ++i) {
    mass += mass_of(i);
    if (by_count) count += h.count[i];
  }
  uint64_t mass_before = inclusive_scan(mass) - mass;
  uint64_t before = by_count ? inclusive_scan(count) - count : mass_before;
  const bool mine = before <= target && target < before + (by_count ? count : mass);
  if (mine) {
    int i = first;
    for (; i < first + kBinsPerLane - 1; ++i) {
      const uint64_t measure = by_count ? h.count[i] : mass_of(i);
      if (target < before + measure) break;
      before += measure;
      mass_before += mass_of(i);
    }
    s.found = i - lane_id();
    s.measure_before = before;
    s.mass_before = mass_before;
  }
  if (!ballot(kFullWarp, mine) && lane_id() == 0) s.found = -1;
}

// Finds the range of keys whose logits are in the found bin. By one warp, for the block: bisection, one end each by lanes 0 and 1.
__device__ void find_keys(const Row& row) {
  Shared& s = shared_state();
  sync_warp();  // found
  const bool is_low = lane_id() == 0;
  uint32_t left = kLowestKey, right = to_key(row.largest);
  while (left < right) {
    const uint32_t middle = left + (right - left + (is_low ? 0 : 1)) / 2;
    const int bin = row.bin(from_key(middle));
    if (is_low) {
      if (bin <= s.found)
        right = middle;
      else
        left = middle + 1;
    } else {
      if (bin >= s.found)
        left = middle;
      else
        right = middle - 1;
    }
  }
  if (lane_id() == 0) s.low_key = left;
  if (lane_id() == 1) s.high_key = left;
}

struct Crossing {
  uint32_t key;           // the token's key; 0 = the target is past the end
  uint64_t rank;          // among the tokens of this key
  uint64_t mass_through;  // mass of all tokens up to this one
};

// Returns the token at which the cumulative count or mass exceeds `target`, from the most likely down, ties by token. Tokens of mass
// 0 are left out. By the whole block; the coarse histogram must have been written, and may still need a barrier.
__device__ Crossing descend(const Row& row, bool by_count, uint64_t target) {
  Shared& s = shared_state();
  sync_block();  // coarse, and all have read what an earlier search found
  if (warp_id() == 0) {
    find_bin(s.coarse, by_count, target);
    find_keys(row);
  }
  sync_block();  // found, keys
  if (s.found < 0) return {0, 0, 0};
  target -= s.measure_before;
  uint64_t mass = s.mass_before;
  uint32_t low = s.low_key, high = s.high_key;
  for (int shift = 1; shift > 0;) {
    shift = 0;
    while ((high - low) >> shift >= kBins) ++shift;
    clear(s.fine);
    sync_block();  // fine; all have read found
    for_each(row, [&](int, float logit) {
      const uint32_t key = to_key(logit);
      if (key < low || key > high) return;
      const uint64_t m = to_mass(row.weight(logit));
      if (m) add(s.fine, int((high - key) >> shift), m, by_count);
    });
    sync_block();  // fine
    if (warp_id() == 0) find_bin(s.fine, by_count, target);
    sync_block();  // found
    if (s.found < 0) return {0, 0, 0};
    target -= s.measure_before;
    mass += s.mass_before;
    high -= uint32_t(s.found) << shift;
    const uint32_t width = (1u << shift) - 1;
    if (high - low > width) low = high - width;
  }
  const uint64_t each = to_mass(row.weight(from_key(high)));
  const uint64_t rank = by_count ? target : target / each;
  return {high, rank, mass + (rank + 1) * each};
}

// --- the draw

__device__ uint64_t draw_target(double uniform, uint64_t mass) {
  const uint64_t target = uint64_t(uint128(uint64_t(uniform * 0x1p53)) * mass >> 53);
  return target < mass ? target : mass - 1;
}

__device__ int draw_by_token(const Row& row, const DrawParams& p) {
  const double least = p.min_p;
  const auto measure = [&](float logit) {
    const double weight = row.weight(logit);
    return weight >= least ? to_mass(weight) : 0;
  };
  return walk_tokens(row, measure, [&](uint64_t mass) { return draw_target(p.uniform, mass); });
}

__device__ int draw_by_likelihood(const Row& row, const DrawParams& p, int most_likely) {
  Shared& s = shared_state();
  const bool top_k = p.top_k > 0 && p.top_k < row.vocab_size;
  clear(s.coarse);
  sync_block();  // coarse
  uint64_t mass = 0, min_p_mass = 0;
  for_each(row, [&](int, float logit) {
    const double weight = row.weight(logit);
    const uint64_t m = to_mass(weight);
    if (!m) return;
    mass += m;
    if (weight >= double(p.min_p)) min_p_mass += m;
    add(s.coarse, row.bin(logit), m, top_k);
  });
  mass = block_sum(mass);
  if (top_k) {
    const Crossing last = descend(row, true, uint64_t(p.top_k) - 1);
    if (last.key) mass = last.mass_through;  // else fewer than top_k tokens have any mass
  }
  if (p.top_p < 1.0f) {
    const uint64_t needed = uint64_t(ceil(double(p.top_p) * double(mass)));
    mass = descend(row, false, needed < 1 ? 0 : needed < mass ? needed - 1 : mass - 1).mass_through;
  }
  if (p.min_p > 0.0f) {
    min_p_mass = block_sum(min_p_mass);
    mass = min_p_mass < mass ? min_p_mass : mass;
  }
  const Crossing drawn = descend(row, false, draw_target(p.uniform, mass));
  if (!drawn.key) return most_likely;  // only for parameters that sampling.h does not allow
  return walk_tokens(
      row, [&](float logit) { return uint64_t(to_key(logit) == drawn.key); }, [&](uint64_t) { return drawn.rank; });
}

__global__ void __launch_bounds__(kMaxThreads, 1) sample_kernel(const __grid_constant__ SampleArgs a) {
  grid_wait();  // logits and parameters are complete, and no earlier kernel still reads the tokens
  grid_launch_dependents();
  Shared& s = shared_state();
  const int warps = int(blockDim.x) / kWarpSize;
  const DrawParams p = a.params[blockIdx.x];
  const int32_t* mask = p.mask_row < 0 ? nullptr : a.masks + int64_t(p.mask_row) * ((a.vocab_size + 31) / 32);
  Row row{a.logits + int64_t(blockIdx.x) * a.vocab_size, mask, a.vocab_size, 0, 0, 0};

  uint32_t key = 0, token = 0;
  bool nan = false, excluded = false;
  for_each(row, [&](int i, float logit) {
    const uint32_t k = to_key(logit);
    if (k > key) key = k, token = uint32_t(i);
    nan |= (float_bits(logit) & 0x7fffffffu) > kInfinityBits;
    excluded |= k == kLowestKey;
  });
  const uint32_t warp_key = reduce_max(kFullWarp, key);
  token = reduce_min(kFullWarp, key == warp_key ? token : ~0u);
  const uint32_t flags = (ballot(kFullWarp, nan) ? 1 : 0) | (ballot(kFullWarp, excluded) ? 2 : 0);
  if (lane_id() == 0) s.warp_key[warp_id()] = warp_key, s.warp_token[warp_id()] = token, s.warp_flags[warp_id()] = flags;
  sync_block();  // warp_key, warp_token, warp_flags
  key = 0;
  uint32_t row_flags = 0;
  for (int w = 0; w < warps; ++w) {
    if (s.warp_key[w] > key || (s.warp_key[w] == key && s.warp_token[w] < token)) key = s.warp_key[w], token = s.warp_token[w];
    row_flags |= s.warp_flags[w];
  }

  int drawn = int(token);
  if (row_flags & 1) {
    drawn = kNanLogit;
  } else if (key == kLowestKey) {
    drawn = kNoToken;
  } else if (!(p.temperature < kGreedyTemperature) && float_bits(from_key(key)) != kInfinityBits) {
    const bool by_token = !(row_flags & 2) && (p.top_k <= 0 || p.top_k >= a.vocab_size) && !(p.top_p < 1.0f);
    row.largest = from_key(key);
    row.inverse_temperature = 1 / double(p.temperature);
    row.bin_scale = float(kBins / kLargestGap * row.inverse_temperature);
    drawn = by_token ? draw_by_token(row, p) : draw_by_likelihood(row, p, int(token));
  }
  if (threadIdx.x == 0) a.tokens[blockIdx.x] = drawn;
}

}  // namespace

void sample(const SampleArgs& args, Stream stream) {
  if (args.num_rows < 0) invalid("sample", "rows: expected 0 or more, got ", args.num_rows);
  if (args.vocab_size < 1 || args.vocab_size > kMaxVocab)
    invalid("sample", "vocabulary: expected 1..", kMaxVocab, ", got ", args.vocab_size);
  if (args.num_rows == 0) return;
  const int threads = std::clamp((args.vocab_size / 8 + kWarpSize - 1) / kWarpSize * kWarpSize, kMinThreads, kMaxThreads);
  launch(sample_kernel, unsigned(args.num_rows), unsigned(threads), sizeof(Shared), stream, args);
}

}  // namespace lynx_rt::cuda
