// Measures the experts of a layer: the two products and their sum, tile sizes, the layer as a chain of launches, and route() alone.
#include <algorithm>
#include <limits>

#include "experts.h"
#include "routing/selection_text.h"

namespace bench {

using namespace lynx_rt;
using namespace lynx_rt::cuda;

namespace {

constexpr int kRows[] = {1, 2, 4, 8, 16, 32, 64, 128};

constexpr const char* kLayerSelections[] = {"topk", "lynx", "oea:k0=2", "xshare:k0=1"};
// alias and replay are left out: they take as long as top1, but for one read.
constexpr const char* kSelections[] = {"topk",         "lynx", "oea:k0=2", "xshare:k0=1",      "des_vote", "cover",
                                       "lynx_literal", "sere", "top1",     "deny_rank:rank=0", "skip",     "capacity"};

int calls_per_graph(const Context& context) { return context.quick ? 16 : 32; }

}  // namespace

// --- the shared parts

ExpertCopies::ExpertCopies(const Context& context, const Shape& s)
    : gate_up_bytes(2 * packed_bytes(s.width, s.hidden_size)),
      down_bytes(packed_bytes(s.hidden_size, s.width)),
      num_copies(rotation(s.num_experts * expert_bytes(), 4)),
      gate_up(size_t(num_copies) * s.num_experts * gate_up_bytes / 2),
      down(size_t(num_copies) * s.num_experts * down_bytes / 2) {
  const Stream stream = context.stream();
  fill_random_bf16(gate_up.get(), int64_t(gate_up.size()), 1, 0.05f, stream);
  fill_random_bf16(down.get(), int64_t(down.size()), 2, 0.05f, stream);
  std::vector<ExpertEntry> places;
  for (int64_t e = 0; e < int64_t(num_copies) * s.num_experts; ++e)
    places.push_back({gate_up.get() + e * gate_up_bytes / 2, down.get() + e * down_bytes / 2});
  entries = DeviceVector<ExpertEntry>(places);
  synchronize(stream);
}

Routed::Routed(const Context& context, int rows, int experts, int k, uint32_t seed)
    : num_rows(rows),
      num_experts(experts),
      top_k(k),
      scores(size_t(rows) * experts),
      weights(size_t(rows) * k),
      ids(weights.size()),
      offsets(size_t(experts) + 1),
      pair_of_sorted(ids.size()),
      num_tiles(1),
      tiles(size_t(max_tiles(int64_t(rows) * k, experts, tile_rows(rows)))),
      count_(std::vector<int32_t>{rows}),
      active_(size_t(experts)),
      num_active_(1),
      sorted_of_pair_(ids.size()),
      stats_(1) {
  fill_random_float(scores.get(), int64_t(scores.size()), seed, 4.0f, context.stream());
  synchronize(context.stream());
}

void Routed::route(const Selection& selection, Stream stream) const {
  RouteArgs args = {};
  args.scores = scores.get();
  args.num_rows = count_.get();
  args.ids = ids.get();
  args.weights = weights.get();
  args.active = active_.get();
  args.num_active = num_active_.get();
  args.offsets = offsets.get();
  args.sorted_of_pair = sorted_of_pair_.get();
  args.pair_of_sorted = pair_of_sorted.get();
  args.stats = stats_.get();
  args.tiles = tiles.get();
  args.num_tiles = num_tiles.get();
  args.max_rows = num_rows;
  args.rule = {num_experts, top_k, true};
  args.selection = selection;
  args.phase = Phase::kDecodeOnly;
  cuda::route(args, stream);
}

ExpertStep::ExpertStep(const Context& context, const Shape& s, int rows, const ExpertCopies& copies)
    : shape(s),
      num_rows(rows),
      experts(copies),
      rounded(size_t(rows) * padded_columns(s.hidden_size)),
      hidden(size_t(rows) * s.top_k * padded_columns(s.width)),
      x(size_t(rows) * s.hidden_size),
      sum(x.size()),
      partial(size_t(rows) * s.top_k * s.hidden_size) {
  const Stream stream = context.stream();
  for (uint32_t i = 0; i < kDistinct; ++i) {
    routings.push_back(std::make_unique<Routed>(context, rows, s.num_experts, s.top_k, 100 + i));
    routings.back()->route({}, stream);
  }
  fill_random_float(x.get(), int64_t(x.size()), 3, 1.0f, stream);
  round_rows(x.get(), s.hidden_size, rows, s.hidden_size, rounded.get(), stream);
  fill_async(hidden.get(), 0xff, hidden.size() * sizeof(uint16_t), stream);  // NaN shows places that are not written
  fill_async(partial.get(), 0xff, partial.size() * sizeof(float), stream);
  synchronize(stream);
}

GateUpArgs ExpertStep::gate_up(const Routed& r, int turn) const {
  GateUpArgs args = {};
  args.x = rounded.get();
  args.experts = experts.entries.get() + turn % experts.num_copies * shape.num_experts;
  args.num_experts = shape.num_experts;
  args.num_rows = num_rows;
  args.hidden_size = shape.hidden_size;
  args.width = shape.width;
  args.top_k = shape.top_k;
  args.pair_of_sorted = r.pair_of_sorted.get();
  args.tiles = r.tiles.get();
  args.num_tiles = r.num_tiles.get();
  args.hidden = hidden.get();
  return args;
}
DownArgs ExpertStep::down(const Routed& r, int turn) const { return {gate_up(r, turn), hidden.get(), partial.get()}; }
double ExpertStep::mean_active() const {
  double total = 0;
  for (const auto& r : routings) total += r->num_active();
  return total / double(routings.size());
}

// --- the products and their sum

void bench_expert_ffn(Context& context) {
  const int calls = calls_per_graph(context), num_sms = context.device.num_sms;
  for (const Shape& shape : kShapes) {
    const ExpertCopies experts(context, shape);
    for (const bool dependent : {true, false}) {
      const Stream stream = context.stream(dependent);
      if (dependent && !stream.dependent_launch) continue;
      std::vector<Point> points;
      for (const int rows : kRows) {
        const ExpertStep step(context, shape, rows, experts);
        const double active = step.mean_active();
        const auto routed = [&](int i) -> const Routed& { return *step.routings[size_t(i % kDistinct)]; };
        struct Part {
          const char* name;
          double bytes;  // of one expert
          std::function<void(int)> call;
        };
        const Part parts[] = {
            {"all", double(experts.expert_bytes()),
             [&](int i) {
               gate_up(step.gate_up(routed(i), i), num_sms, stream);
               down(step.down(routed(i), i), num_sms, stream);
               combine(step.combine(routed(i)), rows, shape.hidden_size, step.sum.get(), stream);
             }},
            {"gate_up", double(experts.gate_up_bytes), [&](int i) { gate_up(step.gate_up(routed(i), i), num_sms, stream); }},
            {"down", double(experts.down_bytes), [&](int i) { down(step.down(routed(i), i), num_sms, stream); }}};
        for (const Part& part : parts) {
          if (part.name != parts[0].name && (context.quick || !dependent)) continue;
          const Times times = time_graph(context, stream, calls, part.call);
          const double bytes = active * part.bytes;
          Line line(context, "expert_ffn");
          line.add("shape", shape.name).add("part", part.name).add("rows", rows).add("dependent_launch", stream.dependent_launch);
          line.add("active", active).add("weight_copies", experts.num_copies).add(times);
          add_rate(line, context, bytes, times);
          if (part.name == parts[0].name) points.push_back({bytes, times.median});
        }
        check_computed(step.sum, "expert_ffn");
      }
      print_fit(context, "expert_ffn_fit", shape.name, stream.dependent_launch, points);
    }
  }
}

// --- tile sizes. The kernel is chosen by the number of rows, so each runs under a number that chooses it, over lists cut to its
// size.

void bench_tiles(Context& context) {
  struct Kernel {
    int tile_rows, num_rows;
  };
  constexpr Kernel kernels[] = {{8, 32}, {16, 128}, {32, 512}, {64, 1024}};
  const Stream stream = context.stream();
  const int calls = calls_per_graph(context), num_sms = context.device.num_sms;
  const Shape& shape = kShapes[0];
  const ExpertCopies experts(context, shape);
  for (const int rows : {8, 32, 64, 128, 256, 512}) {
    const ExpertStep step(context, shape, rows, experts);
    const double bytes = step.mean_active() * double(experts.expert_bytes());
    for (const Kernel& kernel : kernels) {
      if (tile_rows(kernel.num_rows) != kernel.tile_rows) fail(ErrorCode::kInternal, "tiles", "tiles: tile_rows() has changed");
      std::vector<DeviceVector<Tile>> tiles;
      std::vector<DeviceVector<int32_t>> counts;
      for (const auto& r : step.routings) {
        const std::vector<int32_t> offsets = r->offsets.read();
        std::vector<Tile> cut;
        for (int e = 0; e < shape.num_experts; ++e)
          for (int32_t first = offsets[size_t(e)]; first < offsets[size_t(e) + 1]; first += kernel.tile_rows)
            cut.push_back({e, first, std::min(kernel.tile_rows, offsets[size_t(e) + 1] - first)});
        tiles.emplace_back(cut);
        counts.emplace_back(std::vector<int32_t>{int32_t(cut.size())});
      }
      const Times times = time_graph(context, stream, calls, [&](int i) {
        const size_t turn = size_t(i % kDistinct);
        GateUpArgs up = step.gate_up(*step.routings[turn], i);
        DownArgs args = step.down(*step.routings[turn], i);
        up.num_rows = args.num_rows = kernel.num_rows;
        up.tiles = args.tiles = tiles[turn].get();
        up.num_tiles = args.num_tiles = counts[turn].get();
        gate_up(up, num_sms, stream);
        down(args, num_sms, stream);
      });
      Line line(context, "tiles");
      line.add("shape", shape.name).add("rows", rows).add("tile_rows", kernel.tile_rows);
      line.add("chosen", tile_rows(rows) == kernel.tile_rows).add(times);
      add_rate(line, context, bytes, times);
    }
  }
}

// --- a layer's expert half: router, route, the products, and the norm that ends them

void bench_moe_layer(Context& context) {
  const Shape& shape = kShapes[0];
  const ExpertCopies experts(context, shape);
  const int calls = calls_per_graph(context), num_sms = context.device.num_sms;
  const DeviceVector<uint16_t> router_weight(size_t(calls) * shape.num_experts * shape.hidden_size);  // a router for each call
  const DeviceVector<float> norm_weight(std::vector<float>(size_t(shape.hidden_size), 1.0f));
  fill_random_bf16(router_weight.get(), int64_t(router_weight.size()), 5, 0.1f, context.stream());
  for (const int rows : kRows) {
    const ExpertStep step(context, shape, rows, experts);
    const DeviceVector<float> normed(step.x.size());
    const DeviceVector<uint16_t> rounded(step.rounded.size());  // not read: replays must not change the routing
    for (const char* name : kLayerSelections)
      for (const bool dependent : {true, false}) {
        const Stream stream = context.stream(dependent);
        if (dependent && !stream.dependent_launch) continue;
        const Selection selection = parse_policy(name, shape.top_k);
        const Times times = time_graph(context, stream, calls, [&](int i) {
          const Routed& r = *step.routings[size_t(i % kDistinct)];
          const uint16_t* weight = router_weight.get() + size_t(i) * size_t(shape.num_experts * shape.hidden_size);
          router(step.x.get(), WeightView{weight, DType::kBF16, shape.num_experts, shape.hidden_size}, nullptr, rows,
                 r.scores.get(), stream);
          r.route(selection, stream);
          gate_up(step.gate_up(r, i), num_sms, stream);
          down(step.down(r, i), num_sms, stream);
          rmsnorm(step.sum.get(), step.combine(r), norm_weight.get(), 1e-6f, rows, shape.hidden_size, normed.get(), rounded.get(),
                  stream);
        });
        const double active = step.mean_active();
        Line line(context, "moe_layer");
        line.add("shape", shape.name).add("selection", name).add("rows", rows).add("dependent_launch", stream.dependent_launch);
        line.add("active", active).add(times);
        add_rate(line, context, active * double(experts.expert_bytes()), times);
      }
    check_computed(normed, "moe_layer");
  }
}

// --- route() alone

void bench_route(Context& context) {
  for (const int num_experts : {64, 128, 256, 512}) {
    if (context.quick && num_experts != 128) continue;
    const DeviceVector<float> similarity(size_t(num_experts) * num_experts);
    fill_random_float(similarity.get(), int64_t(similarity.size()), 190, 1.0f, context.stream());
    for (int rows = 1; rows <= kMaxRouteRows; rows *= 2) {
      std::vector<std::unique_ptr<Routed>> routings;
      for (uint32_t i = 0; i < kDistinct; ++i)
        routings.push_back(std::make_unique<Routed>(context, rows, num_experts, 8, 200 + i));
      for (const char* name : kSelections)
        for (const bool dependent : {true, false}) {
          const Stream stream = context.stream(dependent);
          if (dependent && !stream.dependent_launch) continue;
          Selection selection = parse_policy(name, 8);
          selection.similarity = similarity.get();
          const Times times =
              time_graph(context, stream, 64, [&](int i) { routings[size_t(i % kDistinct)]->route(selection, stream); });
          Line line(context, "route");
          line.add("experts", num_experts).add("top_k", 8).add("rows", rows).add("selection", name);
          line.add("dependent_launch", stream.dependent_launch).add("active", routings[0]->num_active()).add(times);
        }
    }
  }
}

}  // namespace bench
