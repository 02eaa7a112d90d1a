// Common code of the measurements: results as JSON lines, times of queued work, random data on the device, the memory's ceilings.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "../../tests/simt/device_array.h"
#include "backend/cuda/runtime/runtime.h"

namespace bench {

using lynx_rt::cuda::Stream;

// One result, which the destructor prints to stdout as a line of JSON.
class Line {
 public:
  Line(const struct Context& context, const char* bench);
  ~Line();
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;
  Line& add(const char* key, double value);  // null where it is not finite
  Line& add(const char* key, int value) { return add(key, int64_t(value)); }
  Line& add(const char* key, int64_t value);
  Line& add(const char* key, bool value);
  Line& add(const char* key, const std::string& value);
  Line& add(const char* key, const char* value) { return add(key, std::string(value)); }
  Line& add(const struct Times& times);

 private:
  std::string text_;
};

struct Context {
  explicit Context(bool quick);

  lynx_rt::cuda::DeviceProperties device;
  std::string commit;  // LYNX_RT_COMMIT, or "unknown"
  bool quick;
  double read_gb_per_s = 0, copy_gb_per_s = 0;  // measure_ceilings(); a copy counts what it reads and what it writes
  lynx_rt::cuda::OwnedStream owned;
  // Returns the stream with overlapping launches, or without where the device cannot overlap them (before sm_90).
  Stream stream(bool dependent_launch = true) const { return {owned.get(), dependent_launch && device.major >= 9}; }
};

// Times of one call, over the replays, in microseconds.
struct Times {
  double median = 0, p10 = 0, p90 = 0;
  int replays = 0;
};

// Records call(0), .., call(count - 1) as one graph and replays it back to back, with an event between replays.
Times time_graph(const Context& context, Stream stream, int count, const std::function<void(int)>& call);

// Measures and prints read, copy and write rates of large buffers; stores the best rates of reading and copying in the context.
void measure_ceilings(Context& context);

double gb_per_s(double bytes, const Times& times);
// Adds bytes, GB/s, and percent of the rates of plain reading and copying.
void add_rate(Line& line, const Context& context, double bytes, const Times& times);
// A point for the fit times = c0 + bytes / rate by least squares, which is printed.
struct Point {
  double bytes, us;
};
void print_fit(const Context& context, const char* bench, const std::string& shape, bool dependent_launch,
               const std::vector<Point>& points);
// Returns the bytes that a measurement may still take: the device's free memory less a margin.
int64_t free_bytes();
// Returns how many copies of `bytes` to rotate through, so that the second-level cache holds none when it is used again: as many as
// make 16 times the cache, from 1 to `most`, as far as memory allows.
int rotation(int64_t bytes, int most);
// Throws where one of the first values is not finite or all are zero, which means that nothing was computed.
void check_computed(const DeviceVector<float>& values, const char* what);

// --- device_kernels.cu

int64_t l2_bytes();
void fill_random_bf16(uint16_t* p, int64_t count, uint32_t seed, float scale, Stream stream);  // uniform in [-scale, scale]
void fill_random_float(float* p, int64_t count, uint32_t seed, float scale, Stream stream);
// `bytes` is a multiple of 1 MiB; blocks_per_sm blocks of 256 threads.
void read_all(const void* from, int64_t bytes, uint32_t* sink, int num_blocks, Stream stream);
void copy_all(const void* from, void* to, int64_t bytes, int num_blocks, Stream stream);
void do_nothing(Stream stream);  // one launch that waits for the last one

// --- bench_ops_*.cc

void bench_expert_ffn(Context&);
void bench_tiles(Context&);
void bench_moe_layer(Context&);
void bench_route(Context&);
void bench_attention(Context&);
void bench_gated_delta(Context&);
void bench_linear(Context&);
void bench_head_linear(Context&);
void bench_rows(Context&);
void bench_sample(Context&);

}  // namespace bench
