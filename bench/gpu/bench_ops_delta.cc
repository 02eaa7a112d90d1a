// Measures gated DeltaNet in a decode step, relative to the bytes of the states, which are read and written.
#include <numeric>

#include "backend/cuda/attention/gated_delta.h"
#include "backend/cuda/gemm/packed.h"
#include "measure.h"

namespace bench {

using namespace lynx_rt;
using namespace lynx_rt::cuda;

namespace {

struct Shape {
  const char* name;
  DeltaShape delta;
};
constexpr Shape kShapes[] = {{"Qwen3-Next-80B-A3B", {16, 32, 128, 128, 4, false}}};

void measure(Context& context, const Shape& shape, int batch_size) {
  const DeltaShape& d = shape.delta;
  const int64_t size = d.state_size(), state_bytes = batch_size * size * 4, columns = d.projected_columns(), z = d.channels(),
                b = z + d.values(), a = b + d.value_heads;
  if (state_bytes > free_bytes()) return;
  const int copies = rotation(state_bytes, 64);
  const DeviceVector<float> states(size_t(copies * batch_size * size)), x(size_t(copies * batch_size * columns)),
      conv(size_t(d.conv_width * d.channels())), rate(std::vector<float>(size_t(d.value_heads), -1.0f)),
      dt_bias(std::vector<float>(size_t(d.value_heads), 1.0f)), norm(std::vector<float>(size_t(d.value_dim), 1.0f)),
      out(size_t(batch_size * d.values()));
  const DeviceVector<uint16_t> rounded(size_t(batch_size) * padded_columns(d.values()));
  std::vector<int32_t> starts(size_t(batch_size) + 1);
  std::iota(starts.begin(), starts.end(), 0);
  const DeviceVector<int32_t> query_start(starts), slots(std::vector<int32_t>(starts.begin(), starts.end() - 1));
  for (const bool dependent : {true, false}) {
    const Stream stream = context.stream(dependent);
    if (dependent && !stream.dependent_launch) continue;
    fill_random_float(states.get(), int64_t(states.size()), 11, 1.0f, stream);
    fill_random_float(conv.get(), int64_t(conv.size()), 12, 1.0f, stream);
    fill_random_float(x.get(), int64_t(x.size()), 13, 1.0f, stream);
    synchronize(stream);
    const auto vector = [](const DeviceVector<float>& v, int64_t rows) {
      return WeightView{v.get(), DType::kF32, rows, int64_t(v.size()) / rows};
    };
    // Calls consume x, so that later ones find results of earlier ones there: values of the same size.
    const Times times = time_graph(context, stream, std::max(copies, 16), [&](int i) {
      const int64_t copy = i % copies;
      GatedDeltaCall call = {};
      call.args.x = x.get() + copy * batch_size * columns, call.args.x_stride = columns, call.args.shape = d;
      call.args.q = {0, d.key_dim}, call.args.k = {d.key_heads * d.key_dim, d.key_dim};
      call.args.v = {2 * d.key_heads * d.key_dim, d.values_per_key() * d.value_dim};
      call.args.z = {z, d.values_per_key() * d.value_dim};
      call.args.b = {b, d.values_per_key()}, call.args.a = {a, d.values_per_key()};
      const float* taps = conv.get();
      for (int part = 0; part < 3; ++part) {
        const int64_t part_columns = part < 2 ? d.key_heads * d.key_dim : d.values();
        call.args.conv[part] = {taps, DType::kF32, d.conv_width, part_columns};
        taps += d.conv_width * part_columns;
      }
      call.args.rate = vector(rate, 1), call.args.dt_bias = vector(dt_bias, 1);
      call.args.norm = vector(norm, 1), call.args.eps = 1e-6f;
      call.states = {reinterpret_cast<char*>(states.get() + copy * batch_size * size), size * 4};
      call.query_start = query_start.get(), call.slots = slots.get(), call.num_rows = call.num_seqs = batch_size;
      call.out = out.get(), call.rounded = rounded.get();
      gated_delta_rule(call, stream);
    });
    check_computed(out, "gated_delta");
    Line line(context, "gated_delta");
    line.add("name", shape.name).add("batch", batch_size).add("dependent_launch", stream.dependent_launch);
    line.add("from_l2", copies * state_bytes < 2 * l2_bytes()).add(times);
    add_rate(line, context, 2.0 * double(state_bytes), times);
  }
}

}  // namespace

void bench_gated_delta(Context& context) {
  for (const Shape& shape : kShapes)
    for (const int batch : {1, 8, 32, 128})
      if (!context.quick || batch <= 32) measure(context, shape, batch);
}

}  // namespace bench
