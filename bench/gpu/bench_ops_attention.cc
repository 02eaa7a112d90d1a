// Attention of a decode step, against the bytes of K and V.
#include <algorithm>
#include <numeric>
#include <random>

#include "backend/cuda/attention.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/packed.h"
#include "measure.h"

namespace bench {

using namespace lynx_rt;
using namespace lynx_rt::cuda;

namespace {

constexpr int kHeads = 32, kKvHeads = 4, kHeadDim = 128, kPage = 16;  // of Qwen3-30B-A3B

void measure(Context& context, int batch_size, int length) {
  const int pages = (length + kPage - 1) / kPage, num_pages = pages * batch_size;
  const int64_t bytes = int64_t(batch_size) * length * kKvHeads * kHeadDim * 2 * 2,
                page_values = int64_t(kKvHeads) * kPage * kHeadDim;
  const int64_t cache_bytes = int64_t(num_pages) * page_values * 2 * 2;
  if (cache_bytes > free_bytes()) return;
  const int copies = rotation(cache_bytes, 64), columns = (kHeads + 2 * kKvHeads) * kHeadDim;
  const DeviceVector<uint16_t> k(size_t(copies * int64_t(num_pages) * page_values)), v(k.size());
  const DeviceVector<float> q(size_t(batch_size) * columns), out(size_t(batch_size) * kHeads * kHeadDim);
  const DeviceVector<uint16_t> rounded(size_t(batch_size) * padded_columns(kHeads * kHeadDim));
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
    plan_attention(batch, kHeads / kKvHeads, CudaBackend::kMaxPartials, plan);
    const DeviceVector<int32_t> device_positions(positions), device_tables(tables), first_partial(plan.first_partial);
    const DeviceVector<AttentionTile> tiles(plan.tiles);
    const int num_partials = plan.first_partial.back();
    const DeviceVector<float> partial(size_t(num_partials) * kHeads * (kHeadDim + 2) + 1);
    synchronize(stream);

    const Times times = time_graph(context, stream, std::max(copies, 16), [&](int i) {
      const int64_t copy = i % copies * (int64_t(num_pages) * page_values);
      AttentionArgs args = {};
      args.q = q.get(), args.q_stride = columns, args.num_rows = batch_size, args.num_heads = kHeads;
      args.scale = 0.088388348f;  // 1 / sqrt(128)
      args.positions = device_positions.get(), args.block_tables = device_tables.get(), args.max_blocks = pages;
      args.cache = {k.get() + copy, v.get() + copy, DType::kBF16, num_pages, kPage, kKvHeads, kHeadDim};
      args.tiles = tiles.get(), args.num_tiles = int(plan.tiles.size());
      args.first_partial = first_partial.get(), args.num_partials = num_partials, args.partial = partial.get();
      args.out = out.get(), args.rounded = rounded.get();
      attention(args, stream);
    });
    check_computed(out, "attention");
    Line line(context, "attention");
    line.add("batch", batch_size).add("length", length).add("heads", kHeads).add("kv_heads", kKvHeads).add("head_dim", kHeadDim);
    line.add("dependent_launch", stream.dependent_launch).add("tiles", int64_t(plan.tiles.size())).add("splits", num_partials);
    // Where all copies fit in it, the second-level cache answers and the memory's rate is no bound.
    line.add("from_l2", copies * cache_bytes < 2 * l2_bytes()).add(times);
    add_rate(line, context, double(bytes), times);
  }
}

}  // namespace

void bench_attention(Context& context) {
  for (const int batch : {1, 8, 16, 32, 64, 128})
    for (const int length : {128, 1024, 4096, 16384, 65536}) {
      if (context.quick && (batch == 16 || batch == 128 || length == 65536)) continue;
      measure(context, batch, length);
    }
}

}  // namespace bench
