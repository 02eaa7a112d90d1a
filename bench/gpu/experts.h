// A layer's weights in several copies, and a step's routing and buffers, for the measurements of the experts.
#pragma once
#include <memory>
#include <vector>

#include "backend/cuda/gemm/expert_ffn.h"
#include "backend/cuda/route/route.h"
#include "backend/cuda/route/router.h"
#include "backend/cuda/rows/norm.h"
#include "backend/cuda/rows/round.h"
#include "measure.h"

namespace bench {

struct Shape {
  const char* name;
  int num_experts, top_k, hidden_size, width;
};
// The shapes of models for which decode steps are measured, in bfloat16.
inline constexpr Shape kShapes[] = {{"E128 k8 H2048 I768", 128, 8, 2048, 768},
                                    {"E64 k8 H2048 I1024", 64, 8, 2048, 1024},
                                    {"E64 k6 H2048 I1408", 64, 6, 2048, 1408},
                                    {"E256 k8 H2048 I512", 256, 8, 2048, 512},
                                    {"E128 k8 H4096 I1536", 128, 8, 4096, 1536}};

inline constexpr int kDistinct = 8;  // routings that are used in turn

// Several copies of the experts of one layer, so that a repeated step finds none of them in the second-level cache.
struct ExpertCopies {
  ExpertCopies(const Context& context, const Shape& shape);

  int64_t gate_up_bytes, down_bytes;  // of one expert
  int num_copies;
  DeviceVector<uint16_t> gate_up, down;
  DeviceVector<lynx_rt::cuda::ExpertEntry> entries;  // of all copies
  int64_t expert_bytes() const { return gate_up_bytes + down_bytes; }
};

// The routing of one step: scores, and the lists that route() makes of them.
class Routed {
 public:
  Routed(const Context& context, int num_rows, int num_experts, int top_k, uint32_t seed);
  void route(const lynx_rt::Selection& selection, Stream stream) const;
  int num_active() const { return num_active_.read()[0]; }

  int num_rows, num_experts, top_k;
  DeviceVector<float> scores, weights;
  DeviceVector<int32_t> ids, offsets, pair_of_sorted, num_tiles;
  DeviceVector<lynx_rt::cuda::Tile> tiles;

 private:
  DeviceVector<int32_t> count_, active_, num_active_, sorted_of_pair_;
  DeviceVector<lynx_rt::SelectionStats> stats_;
};

// Buffers of a step, and the two products over them.
struct ExpertStep {
  ExpertStep(const Context& context, const Shape& shape, int num_rows, const ExpertCopies& experts);
  // Returns the arguments for `routed`, with the weights of copy number `turn`.
  lynx_rt::cuda::GateUpArgs gate_up(const Routed& routed, int turn) const;
  lynx_rt::cuda::DownArgs down(const Routed& routed, int turn) const;
  lynx_rt::ExpertSum combine(const Routed& routed) const {
    return {partial.get(), routed.ids.get(), routed.weights.get(), shape.top_k};
  }
  double mean_active() const;  // after route()

  Shape shape;
  int num_rows;
  const ExpertCopies& experts;
  std::vector<std::unique_ptr<Routed>> routings;
  DeviceVector<uint16_t> rounded, hidden;
  DeviceVector<float> x, sum,
      partial;  // x: the float32 input, rounded in `rounded`; sum: the rows to which the experts are added
};

}  // namespace bench
