// Compares pack, linear and head_linear with float64 products of the rounded operands, and checks that the bits of a row do not depend
// on the number of other rows, on their values, or on the tiles.
//   test_gemm [n]   every n-th case; the options are those of SIMT_COPY and SIMT_SEED
#include "backend/cuda/gemm/weight_loader.h"
#include "gemm_reference.h"

#include <bit>
#include <cstdlib>
#include <iostream>

using namespace gemm;

namespace {

int case_number = 0, every_nth = 1;
bool skipped() { return case_number++ % every_nth != 0; }

// --- pack

double half_value(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double magnitude = exponent == 31  ? (fraction ? std::nan("") : kInfinity)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(fraction + 1024, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

// Returns the position of element (n, k) by packed.h, in 16-bit words.
size_t packed_index(int n, int k, int columns, int parts, int part) {
  const int column = k % 32, q = column / 8, step = column / 4 % 2, reg = column / 2 % 2 * 2 + n % 16 / 8, half = column % 2;
  const size_t block = size_t(n / 16) * size_t(padded_columns(columns) / 32) + size_t(k / 32);
  return (block * 2 + step) * parts * 256 + part * 256 + (n % 8 * 4 + q) * 8 + reg * 2 + half;
}

void test_pack(DType dtype, int rows, int columns, int parts, int chunk) {
  const size_t words = size_t(cuda::packed_bytes(rows, columns)) / 2 * parts;
  DeviceVector<uint16_t> packed(std::vector<uint16_t>(words + kGuard, 0xabcd));
  std::vector<uint16_t> want(words + kGuard, 0xabcd);
  std::vector<std::vector<float>> values;
  for (int part = 0; part < parts; ++part) {
    // The values: floats that bf16 rounds, among them ties and a carry; halves of all kinds but NaN, whose bits may differ.
    std::vector<float> matrix(size_t(rows) * columns);
    std::vector<uint16_t> bits(matrix.size());
    for (size_t i = 0; i < matrix.size(); ++i) {
      uint32_t word = uint32_t(generator());
      if (i % 3 == 0) word = (word & 0xffff0000u) | 0x8000u;
      if (i % 5 == 0) word |= 0xffffu;
      matrix[i] = std::bit_cast<float>(word);
      if (!(std::abs(matrix[i]) <= 1e38f)) matrix[i] = 1.0f / float(i + 3);
      bits[i] = uint16_t(word);
      if (dtype == DType::kBF16) bits[i] = f32_to_bf16(matrix[i]);
      if (dtype == DType::kF16 && std::isnan(half_value(bits[i]))) bits[i] &= 0xfc00;
      if (dtype == DType::kBF16) matrix[i] = bf16_to_f32(bits[i]);
      if (dtype == DType::kF16) matrix[i] = float(half_value(bits[i]));
    }
    // The values do not begin at the start of the memory, so that rows are only aligned to their element.
    const DeviceVector<float> floats(matrix.size() + 1);
    const DeviceVector<uint16_t> halves(bits.size() + 1);
    cuda::copy_async(floats.get() + 1, matrix.data(), matrix.size() * 4, {});
    cuda::copy_async(halves.get() + 1, bits.data(), bits.size() * 2, {});
    for (int begin = 0; begin < rows; begin += chunk) {
      const int count = std::min(chunk, rows - begin);
      const void* from = dtype == DType::kF32 ? static_cast<const void*>(floats.get() + 1 + size_t(begin) * columns)
                                              : halves.get() + 1 + size_t(begin) * columns;
      cuda::pack(from, dtype, begin, count, columns, {packed.get(), parts, part}, {});
    }
    for (int n = 0; n < padded_rows(rows); ++n)
      for (int k = 0; k < padded_columns(columns); ++k)
        want[packed_index(n, k, columns, parts, part)] =
            n < rows && k < columns ? f32_to_bf16(matrix[size_t(n) * columns + k]) : uint16_t{0};
    cuda::synchronize({});
  }
  const std::vector<uint16_t> got = packed.read();
  const int failures_before = check::failures;
  CHECK(got == want);
  if (check::failures != failures_before)
    std::cerr << "  pack " << dtype_name(dtype) << " [" << rows << ", " << columns << "], parts " << parts << "\n";
}

void test_packs() {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    for (const int rows : {1, 15, 16, 17, 48, 100})
      for (const int columns : {1, 31, 32, 33, 100}) {
        if (skipped()) continue;
        test_pack(dtype, rows, columns, 1 + random_below(2), random_below(2) ? 16 : 1024);
      }
  cuda::pack(nullptr, DType::kF32, 16, 0, 5, {nullptr, 1, 0}, {});  // an empty chunk

  // NaN and infinity are unchanged.
  std::vector<float> odd(32, 0.0f);
  odd[0] = std::nanf(""), odd[1] = kInfinity, odd[2] = -kInfinity;
  const DeviceVector<float> source(odd);
  const DeviceVector<uint16_t> packed(16 * 32);
  cuda::pack(source.get(), DType::kF32, 0, 1, 32, {packed.get(), 1, 0}, {});
  const std::vector<uint16_t> got = packed.read();
  CHECK(std::isnan(bf16_to_f32(got[packed_index(0, 0, 32, 1, 0)])));
  CHECK_EQ(bf16_to_f32(got[packed_index(0, 1, 32, 1, 0)]), kInfinity);
  CHECK_EQ(bf16_to_f32(got[packed_index(0, 2, 32, 1, 0)]), -kInfinity);
}

// Rows that lie apart in a file, as gpt-oss's gates and ups do, and a scale of all rows, are streamed to the same packed weights.
void test_load_codes() {
  cuda::WeightLoader loader({}, 2);
  for (const Kind& kind : kKinds) {
    const CodedMatrix matrix(kind, 37, 192);
    const auto packed = [&](auto pack) {
      DeviceVector<uint8_t> to(std::vector<uint8_t>(size_t(cuda::packed_bytes(37, 192, matrix.form())) + kGuard, 0xab));
      pack(to.get());
      cuda::synchronize({});
      return to.read();
    };
    const auto apart = [](const std::vector<uint8_t>& rows, int64_t bytes) {
      std::vector<uint8_t> out(rows.size() * 2, 0xff);
      for (size_t i = 0; i < rows.size(); ++i) out[i + i / size_t(bytes) * size_t(bytes)] = rows[i];
      return out;
    };
    const auto codes = apart(matrix.codes, matrix.code_bytes()), scales = apart(matrix.scales, matrix.scale_bytes()),
               zeros = kind.zeros ? apart(matrix.zeros, matrix.groups) : std::vector<uint8_t>();
    BlockRows rows = matrix.blocks(codes.data(), scales.data(), zeros.data());
    rows.row_bytes *= 2, rows.scale_row_bytes *= 2, rows.zero_row_bytes *= 2;
    const auto load = [&](const BlockRows& from, uint8_t* to, int64_t columns = 192) {
      loader.load_codes(view_of_blocks(from, 37, columns, DType::kBF16),
                        [&](const BlockRows& piece, int64_t begin, int64_t count) {
                          cuda::pack_codes(piece, begin, count, 37, columns, {to, 1, 0}, {});
                        });
    };
    const std::vector<uint8_t> want = packed([&](uint8_t* to) { matrix.pack(to, 1, 0, 16); });
    CHECK(packed([&](uint8_t* to) { load(rows, to); }) == want);
    CodedMatrix same_scales = matrix;
    for (size_t i = 0; i < matrix.scales.size(); ++i) same_scales.scales[i] = matrix.scales[i % size_t(matrix.scale_bytes())];
    BlockRows same = rows;
    same.scale_row_bytes = 0;
    CHECK(packed([&](uint8_t* to) { load(same, to); }) == packed([&](uint8_t* to) { same_scales.pack(to); }));
    if (kind.code != BlockCode::kGroupedFp8) continue;
    // A row of scales for 8 rows of weights, of which row 0 is the fourth; and columns that end in a block.
    CodedMatrix shared = matrix;
    for (size_t i = 0; i < matrix.scales.size(); ++i) {
      const size_t row_bytes = size_t(matrix.scale_bytes());
      shared.scales[i] = matrix.scales[(i / row_bytes + 3) / 8 * row_bytes + i % row_bytes];
    }
    rows.scale_rows = 8, rows.first_scale_row = 3;
    CHECK(packed([&](uint8_t* to) { load(rows, to); }) == packed([&](uint8_t* to) { shared.pack(to); }));
    for (size_t i = 0; i < shared.codes.size(); ++i)
      if (i % 192 >= 170) shared.codes[i] = 0;
    CHECK(packed([&](uint8_t* to) { load(rows, to, 170); }) == packed([&](uint8_t* to) { shared.pack(to); }));
  }
}

void test_to_float32() {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = uint16_t(i);
  const DeviceVector<uint16_t> source(bits);
  const DeviceVector<float> out(bits.size());
  cuda::to_float32(source.get(), DType::kF16, int64_t(bits.size()), out.get(), {});
  std::vector<float> got = out.read();
  bool equal = true;
  for (size_t i = 0; i < bits.size(); ++i) {
    const float want = float(half_value(bits[i]));
    equal = equal && (std::isnan(want) ? std::isnan(got[i]) : same_bits(&got[i], &want, 1));
  }
  CHECK(equal);
  for (const int count : {0, 1, 255, 257}) {
    const std::vector<float> values = random_values(size_t(count));
    DeviceVector<float> floats(values);
    DeviceVector<uint16_t> rounded(to_bf16(values));
    DeviceVector<float> to(std::vector<float>(size_t(count) + kGuard, kUntouched));
    std::vector<float> want(size_t(count) + kGuard, kUntouched);
    std::copy(values.begin(), values.end(), want.begin());
    cuda::to_float32(rounded.get(), DType::kBF16, count, to.get(), {});
    CHECK(to.read() == want);
    to.write(std::vector<float>(size_t(count) + kGuard, kUntouched));
    cuda::to_float32(floats.get(), DType::kF32, count, to.get(), {});
    CHECK(to.read() == want);
  }
}

// --- linear

void test_linear(int columns, const std::vector<int>& part_rows, int num_rows, int num_sms) {
  const bool accumulate = random_below(2);
  const Linear linear(columns, part_rows, random_below(2));
  const std::vector<float> x = random_values(size_t(num_rows) * columns);
  std::vector<float> before(size_t(num_rows) * linear.out_stride + kGuard, kUntouched);
  if (accumulate) before = random_values(before.size());
  const float scale = random_below(2) ? 0.7f : 1.0f;
  std::vector<float> gates;
  if (random_below(3) == 0) gates = random_values(size_t(num_rows), 3);
  const std::vector<float> got = linear.run(x, num_sms, accumulate, before, scale, gates);

  std::vector<uint8_t> belongs(before.size());
  int wrong = 0;
  for (int t = 0; t < num_rows; ++t)
    for (size_t part = 0; part < part_rows.size(); ++part)
      for (int n = 0; n < part_rows[part]; ++n) {
        const size_t at = size_t(t) * linear.out_stride + linear.column_of(part) + n;
        Dot want = dot(&x[size_t(t) * columns], &linear.weights[part][size_t(n) * columns], columns);
        const double bias = linear.biases[part].empty() ? 0 : linear.biases[part][n], old = accumulate ? before[at] : 0;
        // The sigmoid is off by 3 roundings, 2 ulp of fast_exp() and 1e-7 of its argument.
        const double by = gates.empty() ? double(scale) : double(scale) / (1 + std::exp(-double(gates[t])));
        const double by_error = gates.empty() ? 0 : std::ldexp(5, -23) + 1e-7 * std::abs(gates[t]);
        // Additions and products in float32 round by 2^-24 of their results.
        want.error += std::ldexp(std::abs(want.value + bias), -24);
        want.value = (want.value + bias) * by;
        want.error = want.error * by + std::abs(want.value) * (by_error + std::ldexp(2, -24));
        want.error += std::ldexp(std::abs(want.value + old), -24);
        want.error *= 1 + 1e-6;  // the bounds above are of the first order
        want.value += old;
        belongs[at] = 1;
        if (!(std::abs(got[at] - want.value) <= want.error)) ++wrong;
      }
  for (size_t i = 0; i < got.size(); ++i)
    if (!belongs[i] && !same_bits(&got[i], &before[i], 1)) ++wrong;
  CHECK_EQ(wrong, 0);
  if (wrong) std::cerr << "  linear K=" << columns << " N=" << part_rows[0] << " T=" << num_rows << " SMs " << num_sms << "\n";
}

void test_linears() {
  const std::vector<std::vector<int>> parts = {{1}, {15}, {16}, {17}, {48}, {33, 16, 1}, {0, 20}, {16, 17, 40, 5}};
  const int rows[] = {0, 1, 2, 7, 8, 9, 32, 33, 40, 47};
  const int sms[] = {1, 3, 200};
  int number = 0;
  for (const int columns : {1, 31, 32, 33, 64, 100, 256, 290, 1100})
    for (const auto& part_rows : parts) {
      ++number;
      if (skipped()) continue;
      test_linear(columns, part_rows, rows[number % 10], sms[number % 3]);
    }
  for (const int num_rows : {129, 150, 513, 530}) {
    if (skipped()) continue;
    test_linear(290, {17}, num_rows, 2);
  }
}

// Products of quantised weights have the bits of those with the decoded weights, of which test_linear() compares the sums; the parts of
// a call may be of different kinds.
void test_quantized_linears() {
  const int rows[] = {1, 9, 17, 40, 0}, sms[] = {1, 200, 3};
  int number = 0;
  for (const int columns : {32, 64, 160, 992})
    for (size_t k = 0; k < kKinds.size(); k += 2) {
      ++number;
      if (skipped()) continue;
      const std::vector<int> part_rows = columns < 992 ? std::vector<int>{17, 0, 33, 16} : std::vector<int>{20};
      const int num_rows = columns < 992 ? rows[number % 5] : rows[1 + number % 2];
      Linear linear(columns, part_rows, true, {kKinds[k], kKinds[k + 1]});
      const std::vector<float> x = random_values(size_t(num_rows) * columns);
      const std::vector<float> before = random_values(size_t(num_rows) * linear.out_stride + kGuard);
      const std::vector<float> got = linear.run(x, sms[number % 3], true, before, 0.7f);
      linear.decode();
      CHECK(same_bits(got, linear.run(x, 3, true, before, 0.7f)));
    }
  for (const Kind& kind : {kKinds[0], kKinds[5]}) {  // the largest tile
    if (skipped()) continue;
    Linear linear(160, {17}, false, {kind});
    const std::vector<float> x = random_values(size_t(513) * 160);
    const std::vector<float> got = linear.run(x, 3, false, std::vector<float>(size_t(513) * linear.out_stride));
    linear.decode();
    CHECK(same_bits(got, linear.run(x, 3, false, std::vector<float>(got.size()))));
  }
}

// Computes the same rows among more and more others, in tiles of 8, 16, 32 and 64, by jobs of 16 and 32 weight rows: with every kernel
// of linear.cu, and more columns than any has in flight.
void test_linear_bits() {
  const int columns = 1100;
  const Linear linear(columns, {20}, true);
  const std::vector<float> x = random_values(size_t(530) * columns);
  const auto run = [&](int first, int count, int num_sms) {
    const std::vector<float> rows(x.begin() + ptrdiff_t(first) * columns, x.begin() + ptrdiff_t(first + count) * columns);
    return linear.run(rows, num_sms, false, std::vector<float>(size_t(count) * linear.out_stride));
  };
  const std::vector<float> all = run(0, 530, 3);
  const int cases[][3] = {{0, 1, 1},  {0, 1, 200},  {3, 5, 1},   {7, 9, 200}, {4, 16, 1},
                          {1, 17, 1}, {2, 34, 200}, {5, 130, 3}, {11, 514, 1}};
  for (const auto& [first, count, num_sms] : cases) {
    if (skipped()) continue;
    const std::vector<float> some = run(first, count, num_sms);
    CHECK(same_bits(some.data(), &all[size_t(first) * linear.out_stride], some.size()));
  }
  // A non-finite row must not affect other rows.
  std::vector<float> spoilt(x.begin(), x.begin() + 20 * columns);
  spoilt[5 * columns + 7] = std::nanf(""), spoilt[9 * columns] = kInfinity;
  const std::vector<float> got = linear.run(spoilt, 3, false, std::vector<float>(size_t(20) * linear.out_stride));
  for (int t = 0; t < 20; ++t) {
    const float* row = &got[size_t(t) * linear.out_stride];
    CHECK_EQ(same_bits(row, &all[size_t(t) * linear.out_stride], size_t(linear.out_stride)), t != 5 && t != 9);
    CHECK(t != 5 || std::isnan(row[3]));
    CHECK(t != 9 || !std::isfinite(row[3]));
  }
}

// A dense product reads its weights once for up to 32 rows, unlike the experts' tiles.
void test_dense_tiles() {
  for (int rows = 1; rows <= 32; ++rows) {
    const int tile = cuda::dense_tile_rows(rows);
    CHECK(tile >= rows && (tile == 8 || tile / 2 < rows));
  }
  for (const int rows : {33, 64, 512}) CHECK_EQ(cuda::dense_tile_rows(rows), 32);
  CHECK_EQ(cuda::dense_tile_rows(513), 64);
}

// --- head_linear

void test_head_linear(int heads, int weight_rows, int columns, int num_rows, int num_sms) {
  const int64_t bytes = cuda::packed_bytes(weight_rows, columns);
  const DeviceVector<uint8_t> packed(std::vector<uint8_t>(size_t(heads * bytes), 0xff));
  std::vector<std::vector<float>> weights;
  for (int a = 0; a < heads; ++a) {
    weights.push_back(random_values(size_t(weight_rows) * columns));
    pack_values(weights.back(), weight_rows, columns, packed.get() + a * bytes);
  }
  const std::vector<float> x = random_values(size_t(num_rows) * heads * columns);
  const int out_head = weight_rows + 3, stride = heads * out_head + 5;
  const auto run = [&](const std::vector<float>& rows, int sms) {
    const int count = int(rows.size()) / (heads * columns);
    const DeviceVector<uint16_t> rounded(rounded_rows(rows, columns));
    const DeviceVector<float> out(std::vector<float>(size_t(count) * stride + kGuard, kUntouched));
    cuda::head_linear({rounded.get(), packed.get(), count, heads, weight_rows, columns, out.get(), stride, out_head}, sms, {});
    return out.read();
  };
  const std::vector<float> got = run(x, num_sms);
  int wrong = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const int t = int(i / size_t(stride)), a = int(i % size_t(stride)) / out_head, n = int(i % size_t(stride)) % out_head;
    if (t >= num_rows || a >= heads || n >= weight_rows) {
      wrong += got[i] != kUntouched;
      continue;
    }
    const Dot want = dot(&x[(size_t(t) * heads + a) * columns], &weights[a][size_t(n) * columns], columns);
    wrong += !(std::abs(got[i] - want.value) <= want.error);
  }
  CHECK_EQ(wrong, 0);
  if (wrong) std::cerr << "  head_linear A=" << heads << " [" << weight_rows << ", " << columns << "] T=" << num_rows << "\n";
  if (num_rows == 0) return;
  // The last row has the same bits alone, and after a non-finite row.
  std::vector<float> last(x.end() - heads * columns, x.end());
  const float* bits = &got[size_t(num_rows - 1) * stride];
  CHECK(same_bits(run(last, 2).data(), bits, size_t(stride)));
  last.insert(last.begin(), last.size(), std::nanf(""));
  CHECK(same_bits(&run(last, 1)[stride], bits, size_t(stride)));
}

void test_head_linears() {
  const int shapes[][3] = {{1, 1, 1},   {3, 31, 20},   {2, 32, 32},  {5, 17, 33}, {4, 48, 64},
                           {16, 16, 8}, {2, 100, 290}, {3, 33, 128}, {1, 64, 100}};
  const int rows[] = {0, 1, 2, 7, 9, 16, 33}, sms[] = {1, 3, 200};
  int number = 0;
  for (const auto& [heads, weight_rows, columns] : shapes)
    for (int i = 0; i < 2; ++i, ++number)
      if (!skipped()) test_head_linear(heads, weight_rows, columns, rows[number * 4 % 7], sms[number % 3]);
  for (const int num_rows : {129, 513})
    if (!skipped()) test_head_linear(3, 20, 40, num_rows, 2);
}

// --- arguments

void test_arguments() {
  const auto code = ErrorCode::kInvalidArgument;
  cuda::LinearArgs linear = {};
  linear.num_rows = 1, linear.num_columns = 32, linear.num_parts = 1;
  linear.parts[0].rows = 16;
  const auto call_linear = [&](auto change, int num_sms = 1) {
    cuda::LinearArgs args = linear;
    change(args);
    cuda::linear(args, num_sms, {});
  };
  CHECK_THROWS(call_linear([](auto& a) { a.num_parts = 5; }), code, "linear", {"parts", "1..4", "5"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_parts = 0; }), code, "linear", {"parts", "1..4", "0"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_columns = 0; }), code, "linear", {"columns", "0"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_rows = -1; }), code, "linear", {"rows", "-1"});
  CHECK_THROWS(call_linear([](auto& a) { a.parts[0].rows = -2; }), code, "linear", {"rows", "-2"});
  CHECK_THROWS(call_linear([](auto&) {}, 0), code, "linear", {"SMs", "0"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_rows = 1 << 30, a.parts[0].rows = 1 << 30; }), code, "linear", {"jobs", "2^30"});
  CHECK_THROWS(call_linear([](auto& a) { a.num_rows = 1 << 20, a.num_columns = 1 << 20; }), code, "linear", {"64 GiB"});
  call_linear([](auto& a) { a.num_rows = 0; });
  call_linear([](auto& a) { a.parts[0].rows = 0; });

  const auto call_heads = [](int rows, int heads, int weight_rows, int columns) {
    cuda::head_linear({nullptr, nullptr, rows, heads, weight_rows, columns, nullptr, 1, 1}, 1, {});
  };
  call_heads(0, 1, 1, 1);
  CHECK_THROWS(call_heads(-1, 1, 1, 1), code, "head_linear", {"rows", "-1"});
  CHECK_THROWS(call_heads(1, 1, 0, 7), code, "head_linear", {"sizes", "[0, 7]"});

  cuda::GateUpArgs gate_up = {};
  gate_up.num_rows = 4;
  CHECK_THROWS(cuda::gate_up(gate_up, 1, {}), code, "gate_up", {"sizes", "0"});
  cuda::DownArgs down = {};
  down.num_rows = 4;
  CHECK_THROWS(cuda::down(down, 1, {}), code, "down", {"sizes", "0"});
  const int32_t* some_list = reinterpret_cast<const int32_t*>(256);  // never read
  gate_up.hidden_size = gate_up.width = down.hidden_size = down.width = 8;
  gate_up.pair_of_sorted = down.pair_of_sorted = some_list;
  CHECK_THROWS(cuda::gate_up(gate_up, 1, {}), code, "gate_up", {"experts per token", "0"});
  CHECK_THROWS(cuda::down(down, 1, {}), code, "down", {"experts per token", "0"});

  CHECK_THROWS(cuda::pack(nullptr, DType::kF32, 8, 1, 1, {}, {}), code, "pack", {"row_begin", "8"});
  CHECK_THROWS(cuda::pack(nullptr, DType::kF32, 0, 1, 1, {nullptr, 2, 2}, {}), code, "pack", {"part", "2"});
  CodedMatrix coded({BlockCode::kGroupedInt4, ScaleType::kBF16, 32}, 2, 32);
  const auto call_pack_codes = [&](auto change, int64_t begin = 0, int64_t columns = 32) {
    BlockRows rows = coded.blocks(coded.codes.data(), coded.scales.data(), nullptr);
    change(rows);
    cuda::pack_codes(rows, begin, 1, 2, columns, {}, {});
  };
  const auto nothing = [](BlockRows&) {};
  CHECK_THROWS(call_pack_codes(nothing, 8), code, "pack_codes", {"row_begin", "8"});
  CHECK_THROWS(call_pack_codes(nothing, 16), code, "pack_codes", {"rows of 2", "16 + 1"});
  CHECK_THROWS(call_pack_codes(nothing, 0, 48), code, "pack_codes", {"multiple of 32", "48"});
  CHECK_THROWS(call_pack_codes([](BlockRows& r) { r.group = 48; }), code, "weight", {"group", "48"});
  CHECK_THROWS(call_pack_codes([](BlockRows& r) { r.scale_type = ScaleType::kF32; }), ErrorCode::kUnsupported, "weight",
               {"grouped int4"});
  CHECK_THROWS(cuda::to_float32(nullptr, DType::kF32, -1, nullptr, {}), code, "to_float32", {"count", "-1"});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) every_nth = std::atoi(argv[1]);
  test_packs();
  test_load_codes();
  test_to_float32();
  test_linears();
  test_quantized_linears();
  test_linear_bits();
  test_dense_tiles();
  test_head_linears();
  test_arguments();
  return check::result("test_gemm");
}
