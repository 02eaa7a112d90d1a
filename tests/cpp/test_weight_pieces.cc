// Tests csrc/checkpoint: pieces of tensors that are strided, transposed, converted or decoded, and the check that they cover their
// tensor.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "checkpoint/dummy.h"
#include "checkpoint/weight_pieces.h"
#include "safetensors_writer.h"
#include "temp_folder.h"

using namespace lynx_rt;

namespace {

constexpr ErrorCode kBug = ErrorCode::kInternal;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

float value_at(const WeightView& v, int64_t row, int64_t col) {
  const auto* p = static_cast<const uint8_t*>(v.row(row)) + col * dtype_size(v.dtype);
  uint32_t bits = 0;
  std::memcpy(&bits, p, size_t(dtype_size(v.dtype)));
  if (v.dtype == DType::kF32) return std::bit_cast<float>(bits);
  return v.dtype == DType::kBF16 ? bf16_to_f32(uint16_t(bits)) : f16_to_f32(uint16_t(bits));
}

// Returns element i of a tensor. Elements differ as far as every dtype has them exactly (below 2048, because of float16).
float element(int64_t i) { return float(i % 2048); }

Tensor numbered(const std::string& name, DType dtype, std::vector<int64_t> shape) {
  int64_t count = 1;
  for (const int64_t d : shape) count *= d;
  std::string data;
  for (int64_t i = 0; i < count; ++i) {
    const float v = element(i);
    const uint32_t bits = dtype == DType::kF32    ? std::bit_cast<uint32_t>(v)
                          : dtype == DType::kBF16 ? f32_to_bf16(v)
                                                  : f32_to_f16(v);
    data.append(reinterpret_cast<const char*>(&bits), size_t(dtype_size(dtype)));
  }
  return {name, dtype == DType::kF32 ? "F32" : dtype == DType::kBF16 ? "BF16" : "F16", std::move(shape), data};
}

// Checks the contents of a piece's target.
void check_piece(const WeightPiece& p, int64_t cols, DType dtype) {
  const WeightView& v = *p.target;
  CHECK_EQ(v.rows, p.transposed ? p.cols : p.rows);
  CHECK_EQ(v.cols, p.transposed ? p.rows : p.cols);
  CHECK(v.dtype == p.dtype.value_or(dtype));
  bool same = true;
  for (int64_t i = 0; i < p.rows; ++i)
    for (int64_t j = 0; j < p.cols; ++j) {
      float expected = element((p.row_begin + i * p.row_step) * cols + p.col_begin + j * p.col_step);
      if (dtype == DType::kBF16) expected = bf16_to_f32(f32_to_bf16(expected));
      same &= value_at(v, p.transposed ? j : i, p.transposed ? i : j) == expected;
    }
  CHECK(same);
}

// Splits the numbers 0 .. size - 1 in a few progressions: consecutive ones, or every second or third.
std::vector<WeightPiece> random_pieces(std::mt19937& random, int64_t rows, int64_t cols, std::vector<WeightView>& targets) {
  const auto split = [&](int64_t size) {
    std::vector<std::array<int64_t, 3>> parts;
    for (int64_t begin = 0; begin < size;) {
      const int64_t step = 1 + int64_t(random() % 3), count = 1 + int64_t(random() % uint64_t(size));
      const int64_t end = std::min(size, begin + step * count);
      for (int64_t i = 0; i < step && begin + i < end; ++i) parts.push_back({begin + i, ceil_div(end - begin - i, step), step});
      begin = end;
    }
    return parts;
  };
  std::vector<WeightPiece> pieces;
  for (const auto& r : split(rows))
    for (const auto& c : split(cols)) {
      WeightPiece p{nullptr, r[0], r[1], r[2], c[0], c[1], c[2]};
      p.transposed = random() % 3 == 0;
      if (random() % 4 == 0) p.dtype = DType::kF32;
      pieces.push_back(p);
    }
  targets.assign(pieces.size(), {});
  for (size_t i = 0; i < pieces.size(); ++i) pieces[i].target = &targets[i];
  std::shuffle(pieces.begin(), pieces.end(), random);
  return pieces;
}

void test_random_pieces() {
  std::mt19937 random(20260);
  const TempFolder folder;
  for (int round = 0; round < 60; ++round) {
    const DType dtype = DType(round % 3);
    const std::vector<int64_t> shape = {1 + int64_t(random() % 3), 1 + int64_t(random() % 45), 1 + int64_t(random() % 40)};
    std::vector<WeightView> targets;
    const std::vector<WeightPiece> pieces = random_pieces(random, shape[0] * shape[1], shape[2], targets);
    // Some bytes before the tensor give it any alignment.
    const int64_t odd = int64_t(random() % 4);
    folder.write("model.safetensors", safetensors({tensor("odd", "U8", {odd}), numbered("t", dtype, shape)}));
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    const WeightCopies owned = bind_weights(checkpoint, {{"t", shape, pieces}}, {"odd"});
    for (const WeightPiece& p : pieces) {
      check_piece(p, shape[2], dtype);
      CHECK_EQ(reinterpret_cast<uintptr_t>(p.target->data) % uintptr_t(dtype_size(p.target->dtype)), 0);
    }
  }
}

// Tests decoded weights in pieces. value = code * 2^(row % 5), which is exact in every dtype.
void test_random_pieces_of_codes() {
  std::mt19937 random(4);
  const TempFolder folder;
  QuantizationConfig config;
  config.method = "compressed-tensors";
  config.formats = {{Encoding::kInt8, 8, 1, 0}};
  for (int round = 0; round < 20; ++round) {
    const std::vector<int64_t> shape = {1 + int64_t(random() % 3), 1 + int64_t(random() % 45), 1 + int64_t(random() % 40)};
    const int64_t rows = shape[0] * shape[1], cols = shape[2];
    std::vector<int8_t> codes;
    std::vector<float> scales;
    for (int64_t i = 0; i < rows * cols; ++i) codes.push_back(int8_t(random()));
    for (int64_t i = 0; i < rows; ++i) scales.push_back(std::ldexp(1.0f, int(i % 5)));
    folder.write("model.safetensors", safetensors({{"t_scale", "F32", {shape[0], shape[1], 1}, bytes_of(scales)},
                                                   {"t", "I8", shape, bytes_of(codes)}}));
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    std::vector<WeightView> targets;
    const std::vector<WeightPiece> pieces = random_pieces(random, rows, cols, targets);
    const DType dtype = DType(round % 3);
    const WeightCopies owned = bind_weights(checkpoint, {{"t", shape, pieces}}, {}, config, dtype);
    bool same = true;
    for (const WeightPiece& p : pieces)
      for (int64_t i = 0; i < p.rows; ++i)
        for (int64_t j = 0; j < p.cols; ++j) {
          const int64_t row = p.row_begin + i * p.row_step, at = row * cols + p.col_begin + j * p.col_step;
          same &=
              value_at(*p.target, p.transposed ? j : i, p.transposed ? i : j) == float(codes[size_t(at)]) * scales[size_t(row)];
        }
    CHECK(same);
    for (const WeightPiece& p : pieces) CHECK(p.target->dtype == p.dtype.value_or(dtype));
  }
}

// Tests the layouts of model families.
void test_layouts() {
  const TempFolder folder;
  constexpr int64_t kE = 2, kI = 5, kH = 70;
  folder.write(
      "model.safetensors",
      safetensors({numbered("interleaved", DType::kBF16, {kE, kH, 2 * kI}), numbered("halves", DType::kF16, {kE, kH, 2 * kI}),
                   numbered("bias", DType::kF32, {kE, 2 * kI}), numbered("vector", DType::kBF16, {kH})}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  WeightView gate[kE], up[kE], first[kE], second[kE], gate_bias[kE], up_bias[kE], vector;
  TensorSpec interleaved{"interleaved", {kE, kH, 2 * kI}, {}}, halves{"halves", {kE, kH, 2 * kI}, {}},
      bias{"bias", {kE, 2 * kI}, {}};
  for (int64_t e = 0; e < kE; ++e) {
    interleaved.pieces.push_back({&gate[e], e * kH, kH, 1, 0, kI, 2, true});
    interleaved.pieces.push_back({&up[e], e * kH, kH, 1, 1, 0, 2, true});  // 0 columns: all columns from there on
    halves.pieces.push_back({&first[e], e * kH, kH, 1, 0, kI, 1, true});
    halves.pieces.push_back({&second[e], e * kH, kH, 1, kI, 0, 1, true});
    bias.pieces.push_back({&gate_bias[e], e, 1, 1, 0, 0, 2});
    bias.pieces.push_back({&up_bias[e], e, 1, 1, 1, 0, 2});
  }
  TensorSpec as_float{"vector", {kH}, {{&vector, 0, 1}}};
  as_float.pieces[0].dtype = DType::kF32;
  const std::vector<TensorSpec> specs = {interleaved, halves, bias, as_float};
  const WeightCopies owned = bind_weights(checkpoint, specs, {});
  for (const TensorSpec& spec : specs)
    for (const WeightPiece& p : checked_pieces(spec)) check_piece(p, spec.shape.back(), DType(p.target->dtype));
  CHECK_EQ(up[1].rows, kI);
  CHECK_EQ(up[1].cols, kH);
  CHECK_EQ(value_at(up[0], 2, 3), element(3 * 2 * kI + 5));
  CHECK_EQ(value_at(second[1], 4, 69), element((kH + 69) * 2 * kI + 9));
  CHECK_EQ(up_bias[1].rows, 1);
  CHECK_EQ(value_at(up_bias[1], 0, 4), element(2 * kI + 9));
  CHECK(vector.dtype == DType::kF32);
}

// A piece that is part of one row is used without a copy.
void test_in_place() {
  const TempFolder folder;
  folder.write("model.safetensors", safetensors({numbered("t", DType::kBF16, {3, 8}), numbered("f", DType::kF32, {4})}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  WeightView a, b, c, f;
  TensorSpec as_float{"f", {4}, {{&f, 0, 1}}};
  as_float.pieces[0].dtype = DType::kF32;  // the tensor's own dtype
  const WeightCopies owned =
      bind_weights(checkpoint, {{"t", {3, 8}, {{&a, 1, 1, 1, 0, 3}, {&b, 1, 1, 1, 3, 5}, {&c, 0, 2, 2}}}, as_float}, {});
  const uint8_t* data = checkpoint.at("t").data;
  CHECK(a.data == data + 16 && b.data == data + 22 && f.data == checkpoint.at("f").data);
  CHECK(c.data != data);
  CHECK_EQ(owned.bytes(), 64);
  CHECK_EQ(value_at(c, 1, 7), element(23));
}

// Pieces are accepted if and only if each element is in one of them.
void test_coverage_is_exact() {
  std::mt19937 random(7);
  const auto below = [&](int64_t n) { return int64_t(random() % uint64_t(n)); };
  int accepted = 0, refused = 0;
  for (int round = 0; round < 6000; ++round) {
    const int64_t rows = below(9), cols = below(7);
    std::vector<WeightView> targets;
    TensorSpec spec{"t", {rows, cols}, {}};
    if (rows > 0 && cols > 0) spec.pieces = random_pieces(random, rows, cols, targets);
    if (!spec.pieces.empty() && below(3) != 0) {  // a piece is removed, doubled, or moved
      WeightPiece& p = spec.pieces[size_t(below(int64_t(spec.pieces.size())))];
      switch (below(6)) {
        case 0: p = spec.pieces[0]; break;
        case 1: p.row_begin += below(3) - 1; break;
        case 2: p.col_begin += below(3) - 1; break;
        case 3: p.rows += below(3) - 1; break;
        case 4: p.col_step += below(3) - 1; break;
        case 5: p.row_step += below(4) - 1; break;
      }
    }
    std::vector<int> times(size_t(rows * cols));
    bool inside = true;
    for (const WeightPiece& p : spec.pieces) {
      inside &= p.row_step >= 1 && p.col_step >= 1 && p.rows >= 0;
      for (int64_t i = 0; i < p.rows && inside; ++i)
        for (int64_t j = 0; j < p.cols && inside; ++j) {
          const int64_t row = p.row_begin + i * p.row_step, col = p.col_begin + j * p.col_step;
          inside = row >= 0 && row < rows && col >= 0 && col < cols;
          if (inside) ++times[size_t(row * cols + col)];
        }
    }
    const bool good = inside && std::all_of(times.begin(), times.end(), [](int n) { return n == 1; });
    bool taken = true;
    try {
      checked_pieces(spec);
    } catch (const Error& e) {
      CHECK(e.code() == kBug);
      taken = false;
    }
    // A piece without rows may begin anywhere in the tensor; it covers nothing.
    CHECK(taken == good ||
          (good && std::any_of(spec.pieces.begin(), spec.pieces.end(), [](const auto& p) { return p.rows == 0; })));
    ++(taken ? accepted : refused);
  }
  CHECK(accepted > 1000 && refused > 1000);
}

// Decodes gpt-oss as transformers does, with alternating rows of gate and up.
void test_interleaved_blocks() {
  const TempFolder folder;
  constexpr int64_t kE = 2, kI = 3, kH = 64;
  constexpr float kE2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  std::mt19937 random(3);
  std::vector<uint8_t> blocks(kE * 2 * kI * kH / 2), scales(kE * 2 * kI * kH / 32);
  for (uint8_t& b : blocks) b = uint8_t(random());
  for (uint8_t& s : scales) s = uint8_t(120 + random() % 12);
  const auto expected = [&](int64_t row, int64_t col) {
    const int code = blocks[size_t(row * kH / 2 + col / 2)] >> (col % 2 * 4) & 15;
    const float v = kE2m1[code & 7] * std::ldexp(1.0f, scales[size_t(row * kH / 32 + col / 32)] - 127);
    return code & 8 ? -v : v;
  };
  folder.write("model.safetensors", safetensors({{"x_blocks", "U8", {kE, 2 * kI, kH / 32, 16}, bytes_of(blocks)},
                                                 {"x_scales", "U8", {kE, 2 * kI, kH / 32}, bytes_of(scales)}}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  QuantizationConfig config;
  config.method = "mxfp4";
  config.formats = {{Encoding::kMxfp4Blocks, 4, 1, 32}};
  WeightView gate[kE], up[kE];
  TensorSpec spec{"x", {kE, 2 * kI, kH}, {}};
  for (int64_t e = 0; e < kE; ++e) {
    spec.pieces.push_back({&gate[e], e * 2 * kI, kI, 2});
    spec.pieces.push_back({&up[e], e * 2 * kI + 1, kI, 2});
  }
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const WeightCopies owned = bind_weights(checkpoint, {spec}, {}, config, dtype);
    bool same = true;
    for (int64_t e = 0; e < kE; ++e)
      for (int64_t i = 0; i < kI; ++i)
        for (int64_t c = 0; c < kH; ++c) {
          same &= value_at(gate[e], i, c) == expected(e * 2 * kI + 2 * i, c);
          same &= value_at(up[e], i, c) == expected(e * 2 * kI + 2 * i + 1, c);
        }
    CHECK(same);
    CHECK(gate[0].dtype == dtype && gate[1].rows == kI && gate[1].cols == kH);
  }
  WeightCopies copies = bind_weights(checkpoint, {spec}, {}, config, DType::kBF16, false);
  CHECK(!up[1].empty() && up[1].rows == kI && value_at(up[1], 2, 63) == 0);
  copies.read({checkpoint.at("x_blocks").data, DType::kBF16, 1, 1});  // not a view of a copy
  CHECK(value_at(up[1], 2, 63) == 0);
  copies.read(up[1]);
  CHECK(value_at(up[1], 2, 63) == expected(2 * kI + 2 * 2 + 1, 63));
  CHECK(value_at(gate[0], 1, 3) == expected(2, 3) && value_at(up[0], 1, 3) == expected(3, 3));
}

// Large copies release their own pages, and no others.
void test_release() {
  const int64_t rows = 96, cols = 1000;
  std::vector<float> values(size_t(rows * cols));
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(i + 1);
  const TempFolder folder;
  folder.write("model.safetensors", safetensors({{"t", "F32", {rows, cols}, bytes_of(values)}}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  WeightView a, b;
  WeightCopies copies = bind_weights(checkpoint, {{"t", {rows, cols}, {{&a, 0, 48, 2}, {&b, 1, 48, 2}}}}, {});
  CHECK(copies.bytes() >= rows * cols * 4);
  copies.release(a);
  CHECK(static_cast<const float*>(a.data)[a.cols * 20] == 0);
  bool same = true;
  for (int64_t i = 0; i < 48; ++i)
    for (int64_t c = 0; c < cols; ++c)
      same &= static_cast<const float*>(b.data)[i * cols + c] == float((2 * i + 1) * cols + c + 1);
  CHECK(same);
}

// Random weights [9, 8] as encoded by compressed-tensors 0.20 (4 bits, asymmetric, groups of 4), and its decoded values.
void test_golden_compressed_tensors() {
  const std::vector<uint32_t> packed = {0x6eff3311, 0x3784ffbf, 0xfb7e5500, 0x8ba5318, 0xffef9786,
                                        0xe6feff,   0x9b993651, 0xfbebfefd, 0x7762d59f};
  const std::vector<uint32_t> zeros = {0x73f843f4, 0xfa4e4c4f, 0xd, 0x5};
  const std::vector<uint16_t> scales = {0x3ead, 0x3e77, 0x3eac, 0x3eb3, 0x3ebe, 0x3ead, 0x3e4e, 0x3e71, 0x3eb3,
                                        0x3ea4, 0x3e63, 0x3e78, 0x3eca, 0x3ebc, 0x3e83, 0x3e8d, 0x3e52, 0x3e99};
  const std::vector<uint16_t> decoded = {
      0xbf82, 0xbf82, 0xbead, 0xbead, 0x0,    0x0,    0xbe77, 0xc00b, 0x0,    0xbfac, 0x0,    0x0,    0x0,    0x3fb3, 0x3f86,
      0xbeb3, 0xbf8e, 0xbf8e, 0x3f3e, 0x3f3e, 0x3f2d, 0xbfd8, 0xbead, 0x3f82, 0x3f4e, 0xbf1a, 0xbe4e, 0x3e4e, 0x3fb5, 0x3fd3,
      0x3f71, 0xbf71, 0xbf33, 0x0,    0xbeb3, 0x3eb3, 0x3ea4, 0x0,    0x3ea4, 0x3ea4, 0x0,    0x0,    0xbe63, 0x0,    0x3ef8,
      0x401b, 0xbf78, 0xbf78, 0xbf4a, 0x3f4a, 0x3f98, 0x0,    0xbebc, 0xbebc, 0x3ebc, 0xbebc, 0x3fc4, 0x4003, 0x3fe5, 0x4003,
      0xbf8d, 0xbe8d, 0xbf8d, 0x0,    0x3ed2, 0xbf52, 0xbfd2, 0x0,    0xbf66, 0x3e99, 0x3f19, 0x3f19};
  const std::vector<int64_t> shape = {9, 8};
  const TempFolder folder;
  folder.write("model.safetensors", safetensors({{"m.weight_packed", "I32", {9, 1}, bytes_of(packed)},
                                                 {"m.weight_scale", "BF16", {9, 2}, bytes_of(scales)},
                                                 {"m.weight_zero_point", "I32", {2, 2}, bytes_of(zeros)},
                                                 {"m.weight_shape", "I64", {2}, bytes_of(shape)}}));
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  QuantizationConfig config;
  config.method = "compressed-tensors";
  config.formats = {{Encoding::kPackedInt, 4, 1, 4, false}};
  WeightView w;
  const WeightCopies owned = bind_weights(checkpoint, {whole_tensor("m.weight", shape, &w)}, {}, config, DType::kBF16);
  CHECK_EQ(w.bytes(), int64_t(decoded.size()) * 2);
  CHECK(std::memcmp(w.data, decoded.data(), decoded.size() * 2) == 0);

  // The matrix is the second of two.
  const std::vector<int64_t> both = {2, 9, 8};
  const std::vector<uint32_t> codes_before(9), zeros_before(4);
  const std::vector<uint16_t> scales_before(18);
  folder.write("model.safetensors", safetensors({{"m.w_packed", "I32", {2, 9, 1}, bytes_of(codes_before) + bytes_of(packed)},
                                                 {"m.w_scale", "BF16", {2, 9, 2}, bytes_of(scales_before) + bytes_of(scales)},
                                                 {"m.w_zero_point", "I32", {2, 2, 2}, bytes_of(zeros_before) + bytes_of(zeros)},
                                                 {"m.w_shape", "I64", {3}, bytes_of(both)}}));
  WeightView first, second;
  const Checkpoint matrices = Checkpoint::open(folder.path());
  const WeightCopies memory =
      bind_weights(matrices, {{"m.w", both, {{&first, 0, 9}, {&second, 9, 9}}}}, {}, config, DType::kBF16);
  CHECK(std::memcmp(second.data, decoded.data(), decoded.size() * 2) == 0);
  CHECK(value_at(first, 8, 7) == 0);
}

// Dummy weights: each target has its shape and dtype and values of its own, which are the same whether tensors share memory or not.
void test_dummy_pieces() {
  WeightView a[2][5];
  std::vector<OwnedWeights> owned;
  for (const bool shared : {false, true}) {
    WeightView* t = a[shared];
    TensorSpec matrix{"m", {6, 10}, {{&t[0], 0, 6, 1, 0, 5, 2, true}, {&t[1], 0, 3, 2, 1, 5, 2}, {&t[2], 1, 3, 2, 1, 5, 2}}};
    matrix.pieces[2].dtype = DType::kF32;
    TensorSpec vector{"v", {7}, {{&t[3], 0, 1}}};
    vector.pieces[0].dtype = DType::kF32;
    owned.push_back(dummy_weights({matrix, vector, whole_tensor("w", {3, 4}, &t[4])}, DType::kBF16, shared));
    CHECK_EQ(t[0].rows, 5);
    CHECK_EQ(t[0].cols, 6);
    CHECK(t[1].dtype == DType::kBF16 && t[2].dtype == DType::kF32 && t[3].dtype == DType::kF32);
    CHECK_EQ(value_at(t[3], 0, 6), 1);
    CHECK_THROWS(dummy_weights({{"m", {6, 10}, {{&t[0], 0, 5}}}}, DType::kBF16, shared), kBug, "m", {"cover 50 of its 60"});
  }
  for (int i = 0; i < 5; ++i) {
    CHECK_EQ(a[0][i].bytes(), a[1][i].bytes());
    CHECK(std::memcmp(a[0][i].data, a[1][i].data, size_t(a[0][i].bytes())) == 0);
  }
  CHECK(value_at(a[0][0], 4, 5) != 0 && value_at(a[0][2], 2, 4) != 0);
  CHECK(value_at(a[0][0], 0, 0) != value_at(a[0][1], 0, 0));
}

}  // namespace

int main() {
  test_random_pieces();
  test_random_pieces_of_codes();
  test_layouts();
  test_in_place();
  test_coverage_is_exact();
  test_interleaved_blocks();
  test_release();
  test_golden_compressed_tensors();
  test_dummy_pieces();
  return check::result("test_weight_pieces");
}
