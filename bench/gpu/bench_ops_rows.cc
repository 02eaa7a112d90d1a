// Measures products with one weight, ops over rows, and sampling.
#include <algorithm>

#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/route/router.h"
#include "backend/cuda/rows/gather.h"
#include "backend/cuda/rows/norm.h"
#include "backend/cuda/rows/round.h"
#include "backend/cuda/sample/sample.h"
#include "measure.h"

namespace bench {

using namespace lynx_rt;
using namespace lynx_rt::cuda;

namespace {

constexpr int kHidden = 2048, kExperts = 128, kTopK = 8, kVocab = 151936;  // of Qwen3-30B-A3B

}  // namespace

void bench_linear(Context& context) {
  struct Product {
    const char* name;
    int columns;
    std::vector<int> parts;  // rows of each weight
    bool accumulate;
  };
  const Product products[] = {
      {"qkv", 2048, {4096, 512, 512}, false}, {"out", 4096, {2048}, true}, {"logits", 2048, {kVocab}, false}};
  for (const Product& p : products) {
    int64_t rows_of_weight = 0, bytes = 0;
    for (const int n : p.parts) rows_of_weight += n, bytes += packed_bytes(n, p.columns);
    const int copies = rotation(bytes, 64);
    const DeviceVector<uint16_t> weight(size_t(copies * bytes / 2));
    fill_random_bf16(weight.get(), int64_t(weight.size()), 21, 0.05f, context.stream());
    for (const int rows : {1, 8, 16, 32, 64, 128, 512, 2048}) {
      if (rows > 128 && (context.quick || p.columns * rows_of_weight > 1 << 28)) continue;
      const DeviceVector<uint16_t> x(size_t(rows) * padded_columns(p.columns));
      const DeviceVector<float> out(size_t(rows) * rows_of_weight);
      fill_random_bf16(x.get(), int64_t(x.size()), 22, 1.0f, context.stream());
      for (const bool dependent : {true, false}) {
        const Stream stream = context.stream(dependent);
        if (dependent && !stream.dependent_launch) continue;
        const Times times = time_graph(context, stream, std::min(copies, 16), [&](int i) {
          LinearArgs args = {};
          args.x = x.get();
          args.num_rows = rows;
          args.num_columns = p.columns;
          const uint16_t* from = weight.get() + i % copies * (bytes / 2);
          int column = 0;
          for (const int n : p.parts) {
            args.parts[args.num_parts++] = {from, nullptr, n, column};
            from += packed_bytes(n, p.columns) / 2;
            column += n;
          }
          args.out = out.get();
          args.out_stride = rows_of_weight;
          args.accumulate = p.accumulate;
          linear(args, context.device.num_sms, stream);
        });
        if (rows <= 128) check_computed(out, "linear");
        Line line(context, "linear");
        line.add("name", p.name).add("rows", rows).add("columns", p.columns).add("weight_rows", rows_of_weight);
        line.add("dependent_launch", stream.dependent_launch).add(times);
        line.add("tflop_per_s", 2e-6 * rows * p.columns * double(rows_of_weight) / times.median);
        add_rate(line, context, double(bytes), times);
      }
    }
  }
}

// Measures the products into the latent space and out of it, with the sizes of DeepSeek-V2-Lite and V3.
void bench_head_linear(Context& context) {
  struct Product {
    const char* name;
    int heads, weight_rows, columns;
  };
  const Product products[] = {
      {"V2-Lite keys", 16, 512, 128}, {"V2-Lite values", 16, 128, 512}, {"V3 keys", 128, 512, 128}, {"V3 values", 128, 128, 512}};
  for (const Product& p : products) {
    const int64_t bytes = p.heads * packed_bytes(p.weight_rows, p.columns);
    const int copies = rotation(bytes, 64);
    const DeviceVector<uint16_t> weight(size_t(copies * bytes / 2));
    const Stream stream = context.stream();
    fill_random_bf16(weight.get(), int64_t(weight.size()), 23, 0.05f, stream);
    for (const int rows : {1, 8, 32, 128, 512}) {
      if (rows > 128 && context.quick) continue;
      const DeviceVector<uint16_t> x(size_t(rows) * p.heads * padded_columns(p.columns));
      const DeviceVector<float> out(size_t(rows) * p.heads * p.weight_rows);
      fill_random_bf16(x.get(), int64_t(x.size()), 24, 1.0f, stream);
      const Times times = time_graph(context, stream, std::min(copies, 16), [&](int i) {
        head_linear({x.get(), weight.get() + i % copies * (bytes / 2), rows, p.heads, p.weight_rows, p.columns, out.get(),
                     int64_t(p.heads) * p.weight_rows, p.weight_rows},
                    context.device.num_sms, stream);
      });
      check_computed(out, "head_linear");
      Line line(context, "head_linear");
      line.add("name", p.name)
          .add("rows", rows)
          .add("heads", p.heads)
          .add("columns", p.columns)
          .add("weight_rows", p.weight_rows);
      line.add("dependent_launch", stream.dependent_launch).add(times);
      add_rate(line, context, double(bytes), times);
    }
  }
}

void bench_rows(Context& context) {
  const Stream stream = context.stream();
  const DeviceVector<float> weight(std::vector<float>(kHidden, 1.0f));
  // There are more routers than the second-level cache can hold, with a call for each, because every layer of a model has its own.
  constexpr int64_t kRouterSize = int64_t(kExperts) * kHidden;
  const int routers = rotation(2 * kRouterSize, 512);
  const DeviceVector<uint16_t> router_weight(size_t(routers * kRouterSize));
  fill_random_bf16(router_weight.get(), int64_t(router_weight.size()), 31, 0.1f, stream);
  for (int rows = 1; rows <= 256; rows *= 4) {
    const DeviceVector<float> x(size_t(rows) * kHidden), out(x.size()), scores(size_t(rows) * kExperts),
        partial(x.size() * kTopK), gate(size_t(rows) * kTopK);
    const DeviceVector<uint16_t> rounded(size_t(rows) * padded_columns(kHidden));
    const DeviceVector<int32_t> ids(gate.size());  // all expert 0
    fill_random_float(x.get(), int64_t(x.size()), 32, 1.0f, stream);
    fill_random_float(partial.get(), int64_t(partial.size()), 33, 1e-3f, stream);
    const auto print = [&](const char* name, const std::function<void(int)>& call, int calls = 64) {
      const Times times = time_graph(context, stream, calls, call);
      Line(context, "rows").add("name", name).add("rows", rows).add("dependent_launch", stream.dependent_launch).add(times);
    };
    print("rmsnorm", [&](int) { rmsnorm(x.get(), {}, weight.get(), 1e-6f, rows, kHidden, out.get(), rounded.get(), stream); });
    print("add_rmsnorm",
          [&](int) { add_rmsnorm(x.get(), {}, weight.get(), 1e-6f, rows, kHidden, true, nullptr, out.get(), stream); });
    print("layernorm", [&](int) {
      layernorm(x.get(), {}, weight.get(), weight.get(), 1e-5f, rows, kHidden, out.get(), rounded.get(), stream);
    });
    print("rmsnorm with combine", [&](int) {
      rmsnorm(x.get(), {partial.get(), ids.get(), gate.get(), kTopK}, weight.get(), 1e-6f, rows, kHidden, out.get(),
              rounded.get(), stream);
    });
    const auto call_router = [&](int i) {
      const uint16_t* of_layer = router_weight.get() + i % routers * kRouterSize;
      router(x.get(), WeightView{of_layer, DType::kBF16, kExperts, kHidden}, nullptr, rows, scores.get(), stream);
    };
    print("router", call_router, std::max(64, routers));
    print("round_rows", [&](int) { round_rows(x.get(), kHidden, rows, kHidden, rounded.get(), stream); });
    check_computed(out, "rows");
    check_computed(scores, "rows");
  }
}

void bench_sample(Context& context) {
  struct Kind {
    const char* name;
    DrawParams params;
  };
  const Kind kinds[] = {{"greedy", {0, 1, 0, 0, 0}},
                        {"temperature", {1, 1, 0, 0, 0.4}},
                        {"top_p", {0.8f, 0.9f, 0, 0, 0.4}},
                        {"top_k", {0.8f, 1, 0, 40, 0.4}},
                        {"top_k, top_p, min_p", {0.8f, 0.9f, 0.05f, 40, 0.4}}};
  const Stream stream = context.stream();
  for (const int rows : {1, 8, 16, 32, 64, 128}) {
    const DeviceVector<float> logits(size_t(rows) * kVocab);
    const DeviceVector<int32_t> tokens{size_t(rows)};
    fill_random_float(logits.get(), int64_t(logits.size()), 41, 10.0f, stream);
    for (const Kind& kind : kinds) {
      const DeviceVector<DrawParams> params(std::vector<DrawParams>(size_t(rows), kind.params));
      const SampleArgs args{logits.get(), params.get(), rows, kVocab, nullptr, tokens.get()};
      const Times times = time_graph(context, stream, 16, [&](int) { sample(args, stream); });
      for (const int32_t token : tokens.read())
        if (token < 0 || token >= kVocab) fail(ErrorCode::kInternal, "sample", "sample: token ", token);
      Line line(context, "sample");
      line.add("kind", kind.name)
          .add("rows", rows)
          .add("vocab", kVocab)
          .add("dependent_launch", stream.dependent_launch)
          .add(times);
      add_rate(line, context, 4.0 * rows * kVocab, times);  // one read of the logits; those of smaller batches are in the cache
    }
  }
}

}  // namespace bench
