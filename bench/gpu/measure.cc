#include "measure.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"

namespace bench {

using namespace lynx_rt;
using namespace lynx_rt::cuda;

// --- results

Line::Line(const Context& context, const char* bench) {
  add("bench", bench);
  add("device", context.device.name);
  add("commit", context.commit);
}
Line::~Line() {
  std::printf("{%s}\n", text_.c_str());
  std::fflush(stdout);
}

namespace {

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

std::string pair(const std::string& text, const char* key, const std::string& value) {
  return str_cat(text, text.empty() ? "" : ", ", quoted(key), ": ", value);
}

}  // namespace

Line& Line::add(const char* key, double value) {
  char number[32];
  std::snprintf(number, sizeof number, "%.6g", value);
  text_ = pair(text_, key, std::isfinite(value) ? number : "null");
  return *this;
}
Line& Line::add(const char* key, int64_t value) {
  text_ = pair(text_, key, std::to_string(value));
  return *this;
}
Line& Line::add(const char* key, bool value) {
  text_ = pair(text_, key, value ? "true" : "false");
  return *this;
}
Line& Line::add(const char* key, const std::string& value) {
  text_ = pair(text_, key, quoted(value));
  return *this;
}
Line& Line::add(const Times& t) {
  return add("us", t.median).add("p10_us", t.p10).add("p90_us", t.p90).add("replays", t.replays);
}

Context::Context(bool quick_) : device(device_properties(0)), quick(quick_), owned(make_stream()) {
  const char* text = std::getenv("LYNX_RT_COMMIT");
  commit = text && *text ? text : "unknown";
}

double gb_per_s(double bytes, const Times& times) { return bytes / times.median / 1e3; }

void add_rate(Line& line, const Context& context, double bytes, const Times& times) {
  const double rate = gb_per_s(bytes, times);
  line.add("bytes", bytes).add("gb_per_s", rate).add("percent_of_read", 100 * rate / context.read_gb_per_s);
  line.add("percent_of_copy", 100 * rate / context.copy_gb_per_s);
}

void print_fit(const Context& context, const char* bench, const std::string& shape, bool dependent_launch,
               const std::vector<Point>& points) {
  double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0, syy = 0;
  for (const auto& [x, y] : points) n += 1, sx += x, sy += y, sxx += x * x, sxy += x * y, syy += y * y;
  const double slope = (n * sxy - sx * sy) / (n * sxx - sx * sx), c0 = (sy - slope * sx) / n;
  double residual = 0, largest = 0;
  for (const auto& [x, y] : points) {
    const double difference = y - c0 - slope * x;
    residual += difference * difference;
    largest = std::max(largest, std::abs(difference));
  }
  Line line(context, bench);
  line.add("shape", shape).add("dependent_launch", dependent_launch).add("points", int64_t(points.size()));
  line.add("c0_us", c0).add("gb_per_s", 1e-3 / slope).add("percent_of_read", 100 * 1e-3 / slope / context.read_gb_per_s);
  line.add("r2", 1 - residual / (syy - sy * sy / n)).add("largest_residual_us", largest);
}

// --- times

Times time_graph(const Context& context, Stream stream, int count, const std::function<void(int)>& call) {
  const auto all = [&] {
    for (int i = 0; i < count; ++i) call(i);
  };
  all();  // a kernel's first launch may do a set-up that is not allowed while recording
  synchronize(stream);
  const Graph graph = Graph::capture(stream, all);
  constexpr int kBatch = 8;
  std::vector<Event> events(kBatch + 1);
  const auto replay = [&] {
    events[0].record(stream);
    for (int i = 0; i < kBatch; ++i) {
      graph.launch(stream);
      events[size_t(i) + 1].record(stream);
    }
    synchronize(stream);
  };
  replay();  // warms up clocks and caches
  std::vector<double> us;
  double total = 0;
  const double wanted = context.quick ? 15e3 : 60e3;
  while ((total < wanted || us.size() < 16) && us.size() < 4000) {
    replay();
    for (int i = 0; i < kBatch; ++i) {
      us.push_back(double(Event::elapsed(events[size_t(i)], events[size_t(i) + 1])) * 1e3 / count);
      total += us.back() * count;
    }
  }
  std::sort(us.begin(), us.end());
  const auto at = [&](double q) { return us[size_t(std::lround(q * double(us.size() - 1)))]; };
  return {at(0.5), at(0.1), at(0.9), int(us.size())};
}

// --- memory

int64_t free_bytes() {
  const MemoryInfo memory = memory_info();
  return std::max<int64_t>(0, memory.free - memory.total / 16);
}

int rotation(int64_t bytes, int most) {
  const int64_t wanted = (16 * l2_bytes() + bytes - 1) / std::max<int64_t>(bytes, 1);
  return int(std::clamp<int64_t>(std::min(wanted, free_bytes() / std::max<int64_t>(bytes, 1)), 1, most));
}

void check_computed(const DeviceVector<float>& values, const char* what) {
  bool nonzero = false;
  for (const float v : values.read()) {
    if (!std::isfinite(v)) fail(ErrorCode::kInternal, what, what, ": a result is not finite");
    nonzero |= v != 0;
  }
  if (!nonzero) fail(ErrorCode::kInternal, what, what, ": all results are zero");
}

void measure_ceilings(Context& context) {
  const int64_t bytes = std::min<int64_t>(context.quick ? int64_t{2} << 30 : int64_t{8} << 30, free_bytes() / 2) >> 20 << 20;
  const DeviceVector<char> from{size_t(bytes)}, to{size_t(bytes)};
  const DeviceVector<uint32_t> sink(1);
  const Stream stream = context.stream();
  fill_random_bf16(reinterpret_cast<uint16_t*>(from.get()), bytes / 2, 1, 1.0f, stream);
  const auto print = [&](const char* kind, int blocks_per_sm, double moved, const Times& times) {
    Line line(context, "ceiling");
    line.add("kind", kind).add("blocks_per_sm", blocks_per_sm).add("buffer_bytes", bytes).add(times);
    line.add("gb_per_s", gb_per_s(moved, times));
  };
  for (const int per_sm : {2, 4, 8, 16}) {
    const int blocks = per_sm * context.device.num_sms;
    const Times read = time_graph(context, stream, 1, [&](int) { read_all(from.get(), bytes, sink.get(), blocks, stream); });
    print("read", per_sm, double(bytes), read);
    context.read_gb_per_s = std::max(context.read_gb_per_s, gb_per_s(double(bytes), read));
    const Times copy = time_graph(context, stream, 1, [&](int) { copy_all(from.get(), to.get(), bytes, blocks, stream); });
    print("copy", per_sm, 2.0 * double(bytes), copy);
    context.copy_gb_per_s = std::max(context.copy_gb_per_s, gb_per_s(2.0 * double(bytes), copy));
  }
  const Times driver = time_graph(context, stream, 1, [&](int) { copy_async(to.get(), from.get(), size_t(bytes), stream); });
  print("copy, the driver's", 0, 2.0 * double(bytes), driver);
  context.copy_gb_per_s = std::max(context.copy_gb_per_s, gb_per_s(2.0 * double(bytes), driver));
  print("write, the driver's", 0, double(bytes),
        time_graph(context, stream, 1, [&](int) { fill_async(to.get(), 1, size_t(bytes), stream); }));
  for (const bool dependent : {false, true}) {
    const Times gap = time_graph(context, context.stream(dependent), 256, [&](int) { do_nothing(context.stream(dependent)); });
    Line(context, "empty_launch").add("dependent_launch", context.stream(dependent).dependent_launch).add(gap);
  }
}

}  // namespace bench
