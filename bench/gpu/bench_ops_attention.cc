// Measures the attention of a decode step, relative to the bytes of K and V that its rows see.
#include <algorithm>
#include <numeric>
#include <random>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/gemm/packed.h"
#include "measure.h"

namespace bench {

using namespace lynx_rt;
using namespace lynx_rt::cuda;

namespace {

constexpr int kPage = 16;

struct Shape {
  const char* name;
  int heads, kv_heads, head_dim;
  int v_dim;    // of a value
  bool latent;  // V is the first columns of K
  int window;   // 0 = all keys
};
constexpr Shape kShapes[] = {{"Qwen3-30B-A3B", 32, 4, 128, 128, false, 0},
                             {"gpt-oss-20b, sliding layer", 64, 8, 64, 64, false, 128},
                             {"DeepSeek-V2-Lite", 16, 1, 576, 512, true, 0},
                             {"DeepSeek-V3", 128, 1, 576, 512, true, 0}};

void measure(Context& context, const Shape& shape, int batch_size, int length) {
  const int attended = shape.window ? std::min(shape.window, length) : length;
  const int pages = (length + kPage - 1) / kPage, num_pages = pages * batch_size;
  const int64_t row_values = int64_t(shape.kv_heads) * (shape.head_dim + (shape.latent ? 0 : shape.v_dim)),
                bytes = int64_t(batch_size) * attended * row_values * 2,
                k_values = int64_t(num_pages) * kPage * shape.kv_heads * shape.head_dim,
                v_values = shape.latent ? 0 : int64_t(num_pages) * kPage * shape.kv_heads * shape.v_dim;
  const int64_t cache_bytes = (k_values + v_values) * 2;
  if (cache_bytes > free_bytes()) return;
  const int copies = rotation(cache_bytes, 64), columns = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
  const DeviceVector<uint16_t> k(size_t(copies * k_values)), v(size_t(copies * v_values));
  const DeviceVector<float> q(size_t(batch_size) * columns), out(size_t(batch_size) * shape.heads * shape.v_dim);
  const DeviceVector<uint16_t> rounded(size_t(batch_size) * padded_columns(shape.heads * shape.v_dim));
  for (const bool dependent : {true, false}) {
    const Stream stream = context.stream(dependent);
    if (dependent && !stream.dependent_launch) continue;
    fill_random_bf16(k.get(), int64_t(k.size()), 11, 1.0f, stream);
    fill_random_bf16(v.get(), int64_t(v.size()), 12, 1.0f, stream);
    fill_random_float(q.get(), int64_t(q.size()), 13, 1.0f, stream);

    std::vector<int32_t> starts(size_t(batch_size) + 1), positions(size_t(batch_size), length - 1),
        tables(static_cast<size_t>(num_pages));
    std::iota(starts.begin(), starts.end(), 0);
    std::iota(tables.begin(), tables.end(), 0);
    std::shuffle(tables.begin(), tables.end(), std::mt19937(1));
    BatchView batch;
    batch.num_rows = batch.num_seqs = batch_size;
    batch.positions = positions.data();
    batch.query_start = starts.data();
    AttentionPlan plan;
    plan_attention(batch, shape.heads / shape.kv_heads, CudaBackend::kMaxPartials, plan);
    const DeviceVector<int32_t> device_positions(positions), device_tables(tables), first_partial(plan.first_partial);
    const DeviceVector<AttentionTile> tiles(plan.tiles);
    const int num_partials = plan.first_partial.back();
    const DeviceVector<float> partial(size_t(num_partials) * shape.heads * (shape.v_dim + 2) + 1);
    synchronize(stream);

    const Times times = time_graph(context, stream, std::max(copies, 16), [&](int i) {
      const int64_t copy = i % copies;
      PagedAttentionArgs args = {};
      args.q = q.get(), args.q_stride = columns, args.num_rows = batch_size, args.num_heads = shape.heads;
      args.scale = 0.088388348f;  // 1 / sqrt(128)
      args.window = shape.window;
      args.positions = device_positions.get(), args.block_tables = device_tables.get(), args.max_blocks = pages;
      args.cache = {k.get() + copy * k_values,
                    shape.latent ? nullptr : v.get() + copy * v_values,
                    DType::kBF16,
                    num_pages,
                    kPage,
                    shape.kv_heads,
                    shape.head_dim,
                    shape.v_dim};
      args.tiles = tiles.get(), args.num_tiles = int(plan.tiles.size());
      args.first_partial = first_partial.get(), args.num_partials = num_partials, args.partial = partial.get();
      args.out = out.get(), args.rounded = rounded.get();
      attention(args, stream);
    });
    check_computed(out, "attention");
    Line line(context, "attention");
    line.add("name", shape.name).add("batch", batch_size).add("length", length).add("heads", shape.heads);
    line.add("kv_heads", shape.kv_heads).add("head_dim", shape.head_dim).add("v_dim", shape.v_dim).add("window", shape.window);
    line.add("dependent_launch", stream.dependent_launch).add("tiles", int64_t(plan.tiles.size())).add("splits", num_partials);
    // Reads come from the second-level cache if all copies fit in it. The memory's rate is then no bound.
    line.add("from_l2", copies * cache_bytes < 2 * l2_bytes()).add(times);
    add_rate(line, context, double(bytes), times);
  }
}

}  // namespace

void bench_attention(Context& context) {
  for (const Shape& shape : kShapes)
    for (const int batch : {1, 8, 16, 32, 64, 128})
      for (const int length : {128, 1024, 4096, 16384, 65536}) {
        if (context.quick && (batch == 16 || batch == 128 || length == 65536)) continue;
        if (context.quick && &shape != kShapes && (batch > 8 || length > 4096)) continue;
        measure(context, shape, batch, length);
      }
}

}  // namespace bench
