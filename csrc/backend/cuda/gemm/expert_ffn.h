// The two products of the experts over tiles of pairs, or of a dense MLP over all rows. Positions in the order by expert are
// "places": place r is pair pair_of_sorted[r] of DispatchPlan. Sums have the order of linear.h: the bits of a row depend neither on
// the other rows nor on its position in its tile.
#pragma once
#include <cstdint>

#include "backend/cuda/gemm/packed.h"
#include "backend/cuda/runtime/runtime.h"
#include "backend/ffn_rule.h"
#include "routing/routing.h"

namespace lynx_rt::cuda {

// Places [first, first + count) of one expert; count <= the list's rows per tile.
struct Tile {
  int32_t expert, first, count;
};

// Rows of an expert's tile in a step of T rows: 8, 16, 32 or 64. The size of route()'s list and the choice of the kernel use it.
constexpr int tile_rows(int num_rows) { return num_rows <= 32 ? 8 : num_rows <= 128 ? 16 : num_rows <= 512 ? 32 : 64; }
// Rows of a tile of a dense product, in which all rows take the same weights: up to 32 rows fit in one tile, so
// that weights are read from L2 once.
constexpr int dense_tile_rows(int num_rows) { return num_rows <= 8 ? 8 : num_rows <= 16 ? 16 : num_rows <= 512 ? 32 : 64; }
// Rows of a tile of gate_up() and down().
constexpr int ffn_tile_rows(bool routed, int num_rows) { return routed ? tile_rows(num_rows) : dense_tile_rows(num_rows); }
// Returns the most tiles that num_pairs pairs over num_experts experts can need.
constexpr int64_t max_tiles(int64_t num_pairs, int64_t num_experts, int tile_rows) {
  const int64_t starts = num_experts < num_pairs ? num_experts : num_pairs;  // most tiles that are not full
  return starts + num_pairs / tile_rows;
}

// The device addresses and forms of an expert's weights: an entry of ExpertTable::entries(), or that of a dense MLP. Kernels find experts
// through their entries alone, so an expert may be anywhere in memory.
struct ExpertEntry {
  const void* gate_up = nullptr;     // packed [I, H], gate and up sharing an array, or gate alone
  const void* down = nullptr;        // packed [H, I]
  const float* gate_bias = nullptr;  // [I], [I], [H], or all null
  const float* up_bias = nullptr;
  const float* down_bias = nullptr;
  PackedForm gate_up_form = {}, down_form = {};
};

// The arguments that gate_up() and down() have in common.
struct FfnArgs {
  const ExpertEntry* experts;     // [E] on the device; null: a dense MLP
  ExpertEntry dense;              // the weights of a dense MLP
  bool biased;                    // entries have biases, which are added to the products
  int bits = 16;                  // PackedForm::bits of all experts' matrices of this product, or-ed
  int num_rows;                   // T
  int hidden_size;                // H
  int width;                      // I
  int top_k;                      // k
  const int32_t* pair_of_sorted;  // [T * k]; null: a dense MLP, one expert, place t is row t, tiles and num_tiles unused
  const Tile* tiles;              // [*num_tiles] on the device
  const int32_t* num_tiles;       // [1] on the device
};

struct GateUpArgs : FfnArgs {
  const uint16_t* x;  // [T, padded_columns(H)] rounded activations
  int num_experts;    // E
  uint16_t* hidden;   // out [T * k, padded_columns(I)] by place: bf16(activation(x . gate, x . up)), zeros after I
  const float* pair_scale = nullptr;  // [T * k] scale of a pair's input, applied to the products; null: 1, as for a dense MLP
  FfnRule ffn = {};                   // the activation
  bool gated = true;                  // false: experts have no up
};
void gate_up(const GateUpArgs& args, int num_sms, Stream stream);

struct DownArgs : FfnArgs {
  const uint16_t* hidden;  // [T * k, padded_columns(I)] by place
  float* partial;          // out [T * k, H] by pair; pairs without an expert are not written
};
void down(const DownArgs& args, int num_sms, Stream stream);

}  // namespace lynx_rt::cuda
