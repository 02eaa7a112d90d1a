// Products with weights in blocks: every instruction set against the sums that kernels/blocks.h defines, and values against their
// formulas.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu/kernels/blocks.h"
#include "backend/cpu/kernels/kernels.h"
#include "check.h"

using namespace lynx_rt;
using namespace lynx_rt::cpu;

namespace {

constexpr BlockCode kCodes[] = {BlockCode::kQ8_0,         BlockCode::kQ4_0,        BlockCode::kQ4_K,       BlockCode::kQ5_K,
                                BlockCode::kQ6_K,         BlockCode::kIQ4_NL,      BlockCode::kIQ4_XS,     BlockCode::kMxfp4,
                                BlockCode::kGroupedMxfp4, BlockCode::kGroupedInt4, BlockCode::kGroupedInt8};

bool grouped(BlockCode code) { return code >= BlockCode::kGroupedMxfp4; }

// A matrix of random codes with scales near 2^-6.
struct Matrix {
  int64_t n, k;
  std::vector<uint8_t> codes, scales, zeros;
  BlockRows rows;

  Matrix(BlockCode code, int64_t rows_n, int64_t columns, int64_t group, ScaleType type, bool with_zeros, int spread,
         uint32_t seed)
      : n(rows_n), k(columns) {
    std::mt19937 random(seed);
    const BlockSize size = block_size(code);
    const int64_t row_bytes = k / size.columns * size.bytes, groups = group ? ceil_div(k, group) : 0;
    const auto half = [&](uint8_t* p) {
      const uint16_t bits = uint16_t(0x2000 + random() % 0x800 + (random() % 2 << 15));
      std::memcpy(p, &bits, 2);
    };
    codes.resize(size_t(n * row_bytes + 3));  // at an odd address
    for (uint8_t& c : codes) c = uint8_t(random());
    for (int64_t b = 0; b < n * k / size.columns && !grouped(code); ++b) {
      uint8_t* p = codes.data() + 3 + b * size.bytes;
      if (code == BlockCode::kMxfp4) {
        *p = uint8_t(120 + int(random() % uint32_t(spread + 1)));
      } else {
        half(code == BlockCode::kQ6_K ? p + 208 : p);
        if (code == BlockCode::kQ4_K || code == BlockCode::kQ5_K) half(p + 2);
      }
    }
    rows = {code, codes.data() + 3, row_bytes};
    if (!grouped(code)) return;
    rows.group = group;
    rows.scale_type = type;
    rows.scale_row_bytes = groups * scale_size(type);
    scales.resize(size_t(n * rows.scale_row_bytes));
    for (int64_t i = 0; i < n * groups; ++i) {
      uint8_t* p = scales.data() + i * scale_size(type);
      const float scale = 0.01f * float(1 + random() % 7);
      if (type == ScaleType::kF32) std::memcpy(p, &scale, 4);
      if (type == ScaleType::kBF16) {
        const uint16_t bits = f32_to_bf16(scale);
        std::memcpy(p, &bits, 2);
      }
      if (type == ScaleType::kF16) half(p);
      if (type == ScaleType::kExponent) *p = uint8_t(120 + int(random() % uint32_t(spread + 1)));
    }
    rows.scales = scales.data();
    if (!with_zeros) return;
    zeros.resize(size_t(n * groups));
    for (uint8_t& z : zeros) z = uint8_t(random() % 16);
    rows.zeros = zeros.data();
    rows.zero_row_bytes = groups;
  }
};

// Checks a condition, and says of what.
template <class... Parts>
void check_of(bool condition, const Parts&... parts) {
  if (!condition) std::cerr << str_cat(parts...) << ": ";
  CHECK(condition);
}

struct Rows {
  std::vector<float> values;
  std::vector<char> packed;
  int64_t stride;

  Rows(int64_t m, int64_t k, uint32_t seed)
      : values(size_t(m * k)), packed(size_t(m * Blocks::x_bytes(k))), stride(Blocks::x_bytes(k)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& v : values) v = normal(random);
    std::vector<const float*> rows;
    for (int64_t j = 0; j < m; ++j) rows.push_back(values.data() + j * k);
    if (m > 0) kScalarBlockKernels.pack(rows.data(), m, 0, k, packed.data(), stride);
  }
};

void check(const Matrix& w, int64_t m) {
  const Rows x(m, w.k, 7);
  const std::string name = str_cat(block_code_name(w.rows.code), " n ", w.n, " k ", w.k, " m ", m);
  std::vector<float> expected(size_t(m * w.n), 1.0f);
  kScalarBlockKernels.gemm(w.rows, w.n, x.packed.data(), x.stride, m, w.k, expected.data(), w.n, false, nullptr);
  // The product of the values, in float64, with x as it was packed.
  std::vector<float> values(size_t(w.k));
  for (int64_t i = 0; i < w.n; ++i) {
    kScalarBlockKernels.values(w.rows, i, w.k, values.data());
    for (int64_t j = 0; j < m; ++j) {
      const char* row = x.packed.data() + j * x.stride;
      const float* scales = Blocks::x_scales(row, Quant::groups(w.k));
      double sum = 0, size = 0;
      for (int64_t c = 0; c < w.k; ++c) {
        const double term = double(values[size_t(c)]) * double(int8_t(row[c])) * double(scales[c / Blocks::kGroup]);
        sum += term;
        size += std::abs(term);
      }
      // Roundings: one of each run and each group, and those of zeros and minimums, whose terms are up to 16 times as large.
      const double bound = double(w.k / 32 + 16) * 0x1p-24 * size * 32 + 1e-6;
      check_of(std::abs(sum - double(expected[size_t(j * w.n + i)])) <= bound, name, " row ", i, " of w, ", j, " of x");
    }
  }
  for (Isa isa : supported_isas()) {
    const BlockKernels& kernels = block_kernels_for(isa);
    std::vector<float> out(size_t(m * (w.n + 1)), 1.0f), decoded(size_t(w.k));
    kernels.gemm(w.rows, w.n, x.packed.data(), x.stride, m, w.k, out.data(), w.n + 1, true, w.rows.data);
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t i = 0; i < w.n; ++i)
        check_of(out[size_t(j * (w.n + 1) + i)] == 1.0f + expected[size_t(j * w.n + i)], name, " ", isa_name(isa));
      check_of(out[size_t(j * (w.n + 1) + w.n)] == 1.0f, name, " ", isa_name(isa), " wrote beyond its columns");
    }
    // One row at a time gives the same bits.
    for (int64_t j = 0; j < m; ++j)
      for (int64_t i = 0; i < w.n; ++i) {
        float one;
        kernels.gemm(from_row(w.rows, i), 1, x.packed.data() + j * x.stride, x.stride, 1, w.k, &one, 1, false, nullptr);
        check_of(one == expected[size_t(j * w.n + i)], name, " ", isa_name(isa), " row ", i, " of w, ", j, " of x");
      }
    for (int64_t i = 0; i < w.n; ++i) {
      kScalarBlockKernels.values(w.rows, i, w.k, values.data());
      kernels.values(w.rows, i, w.k, decoded.data());
      check_of(std::memcmp(values.data(), decoded.data(), size_t(w.k) * 4) == 0, name, " ", isa_name(isa), " values");
    }
    std::vector<char> packed(x.packed.size());
    std::vector<const float*> rows;
    for (int64_t j = 0; j < m; ++j) rows.push_back(x.values.data() + j * w.k);
    if (m > 0) kernels.pack(rows.data(), m, 0, w.k, packed.data(), x.stride);
    check_of(packed == x.packed, name, " ", isa_name(isa), " packs otherwise");
  }
}

void test_products() {
  for (BlockCode code : kCodes) {
    const int64_t columns = block_size(code).columns;
    for (int64_t k : {columns, 9 * columns, int64_t{2304}, int64_t{4352}})
      for (int64_t n : {1, 7, 8, 13, 16, 35})
        for (int64_t m : {0, 1, 2, 3, 5, 6, 11, 65}) {
          if (n * m > 50 && k > columns && (m != 11 || n != 13)) continue;
          if (!grouped(code)) {
            check(Matrix(code, n, k, 0, ScaleType::kF32, false, 3, uint32_t(k + n)), m);
          } else if (code == BlockCode::kGroupedMxfp4) {
            check(Matrix(code, n, k, 32, ScaleType::kExponent, false, 3, uint32_t(k + n)), m);
          } else {
            for (int64_t group : {32, 64, 96, 128, 256})
              if (m < 6)
                check(Matrix(code, n, k, group, ScaleType(group / 32 % 3), code == BlockCode::kGroupedInt4 && group > 64, 0,
                             uint32_t(k + n)),
                      m);
          }
        }
  }
}

// Exponents far apart.
void test_wide_exponents() {
  for (BlockCode code : {BlockCode::kMxfp4, BlockCode::kGroupedMxfp4})
    for (int spread : {8, 9, 30}) check(Matrix(code, 5, 2304, 32, ScaleType::kExponent, false, spread, 3), 7);
}

// Infinity and NaN of x reach every output, and no output of another row.
void test_non_finite() {
  const Matrix w(BlockCode::kQ4_K, 3, 512, 0, ScaleType::kF32, false, 0, 1);
  Rows x(2, 512, 1);
  x.values[100] = INFINITY;
  const float* rows[] = {x.values.data(), x.values.data() + 512};
  for (Isa isa : supported_isas()) {
    const BlockKernels& kernels = block_kernels_for(isa);
    kernels.pack(rows, 2, 0, 512, x.packed.data(), x.stride);
    float out[6];
    kernels.gemm(w.rows, 3, x.packed.data(), x.stride, 2, 512, out, 3, false, nullptr);
    for (int i = 0; i < 3; ++i) check_of(std::isnan(out[i]) && std::isfinite(out[3 + i]), isa_name(isa));
  }
}

}  // namespace

int main() {
  test_products();
  test_wide_exponents();
  test_non_finite();
  return check::result("test_blocks");
}
