// Computes warp collectives from the arguments of their waiting lanes. Fragment maps: PTX ISA, "Matrix Fragments for mma.m16n8k16" and
// "ldmatrix".
#include <cstring>

#include "simt.h"

namespace simt {

namespace {

constexpr int kLanes = 32;

uint32_t value(const Call& call) { return *static_cast<const uint32_t*>(call.in); }

float bf16(uint32_t pair, int half) {
  const uint32_t bits = (half ? pair >> 16 : pair & 0xffff) << 16;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// Copies with sizes known to the compiler, so that no memcpy is called: ThreadSanitizer would see it as the last lane's access.
void copy(void* to, const void* from, int bytes) {
  if (bytes == 4) {
    std::memcpy(to, from, 4);
  } else {
    std::memcpy(to, from, 8);
  }
}

const char* shuffle(const Call* const* lanes) {
  unsigned char in[kLanes][8];  // all are read before any is written: a lane's value and result may be one variable
  for (int l = 0; l < kLanes; ++l)
    if (lanes[l]) copy(in[l], lanes[l]->in, lanes[l]->bytes);
  for (int l = 0; l < kLanes; ++l) {
    if (!lanes[l]) continue;
    const int source = lanes[l]->source;
    if (!lanes[source]) return "a lane reads a lane outside the mask";
    if (lanes[source]->bytes != lanes[l]->bytes) return "lanes disagree on the type";
    copy(lanes[l]->out, in[source], lanes[l]->bytes);
  }
  return nullptr;
}

void to_all_lanes(const Call* const* lanes, Op op) {
  uint32_t result = op == Op::kMin ? 0xffffffffu : 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!lanes[l]) continue;
    const uint32_t v = value(*lanes[l]);
    if (op == Op::kBallot) result |= uint32_t(v != 0) << l;
    if (op == Op::kAdd) result += v;
    if (op == Op::kMax && v > result) result = v;
    if (op == Op::kMin && v < result) result = v;
  }
  for (int l = 0; l < kLanes; ++l)
    if (lanes[l]) *static_cast<uint32_t*>(lanes[l]->out) = result;
}

void match(const Call* const* lanes) {
  for (int l = 0; l < kLanes; ++l) {
    if (!lanes[l]) continue;
    uint32_t equal = 0;
    for (int other = 0; other < kLanes; ++other)
      if (lanes[other] && value(*lanes[other]) == value(*lanes[l])) equal |= 1u << other;
    *static_cast<uint32_t*>(lanes[l]->out) = equal;
  }
}

const char* load_matrix(const Call* const* lanes, bool transposed) {
  uint16_t element[4][8][8];  // matrix, row, column
  for (int l = 0; l < kLanes; ++l) {
    if (uintptr_t(lanes[l]->in) % 16) return "a row is not 16-byte aligned";
    std::memcpy(element[l / 8][l % 8], lanes[l]->in, 16);
  }
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, q = l % 4;
    for (int m = 0; m < 4; ++m) {
      const uint16_t low = transposed ? element[m][2 * q][g] : element[m][g][2 * q];
      const uint16_t high = transposed ? element[m][2 * q + 1][g] : element[m][g][2 * q + 1];
      static_cast<uint32_t*>(lanes[l]->out)[m] = low | uint32_t(high) << 16;
    }
  }
  return nullptr;
}

void mma(const Call* const* lanes) {
  float a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < kLanes; ++l) {
    const MmaIn& in = *static_cast<const MmaIn*>(lanes[l]->in);
    const int g = l / 4, q = l % 4;
    for (int half = 0; half < 2; ++half) {
      a[g][2 * q + half] = bf16(in.a[0], half);
      a[g + 8][2 * q + half] = bf16(in.a[1], half);
      a[g][2 * q + 8 + half] = bf16(in.a[2], half);
      a[g + 8][2 * q + 8 + half] = bf16(in.a[3], half);
      b[2 * q + half][g] = bf16(in.b[0], half);
      b[2 * q + 8 + half][g] = bf16(in.b[1], half);
      c[g][2 * q + half] = in.c[half];
      c[g + 8][2 * q + half] = in.c[2 + half];
    }
  }
  for (int l = 0; l < kLanes; ++l)
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + (i / 2) * 8, column = 2 * (l % 4) + i % 2;
      double sum = c[row][column];
      for (int k = 0; k < 16; ++k) sum += double(a[row][k]) * b[k][column];
      static_cast<float*>(lanes[l]->out)[i] = float(sum);
    }
}

}  // namespace

const char* compute(const Call* const* lanes) {
  int first = 0;
  while (!lanes[first]) ++first;
  switch (const Op op = lanes[first]->op; op) {
    case Op::kShuffle: return shuffle(lanes);
    case Op::kMatch: match(lanes); return nullptr;
    case Op::kSyncWarp: return nullptr;
    case Op::kLoadMatrix: return load_matrix(lanes, false);
    case Op::kLoadMatrixTransposed: return load_matrix(lanes, true);
    case Op::kMma: mma(lanes); return nullptr;
    default: to_all_lanes(lanes, op); return nullptr;
  }
}

const char* name(Op op) {
  switch (op) {
    case Op::kShuffle: return "shuffle";
    case Op::kBallot: return "ballot";
    case Op::kMatch: return "match_any";
    case Op::kMax: return "reduce_max";
    case Op::kMin: return "reduce_min";
    case Op::kAdd: return "reduce_add";
    case Op::kSyncWarp: return "sync_warp";
    case Op::kLoadMatrix: return "load_matrix_x4";
    case Op::kLoadMatrixTransposed: return "load_matrix_x4_transposed";
    case Op::kMma: return "mma_bf16";
  }
  return "?";
}

}  // namespace simt
