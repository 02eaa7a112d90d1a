// Products with weights in blocks: every instruction set against the sums that kernels/blocks.h defines; and their values, in float32 and
// rounded.
#include <bit>
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

uint32_t rounded_bits(float v, DType dtype) {
  return dtype == DType::kF32 ? std::bit_cast<uint32_t>(v) : dtype == DType::kBF16 ? f32_to_bf16(v) : f32_to_f16(v);
}

float round_to(float v, DType dtype) {
  const uint32_t bits = rounded_bits(v, dtype);
  return dtype == DType::kF32 ? v : dtype == DType::kBF16 ? bf16_to_f32(uint16_t(bits)) : f16_to_f32(uint16_t(bits));
}

// Checks that every instruction set decodes n rows to `values`, rounded to each type after each other, and writes nothing beside them.
void check_decoding(BlockRows w, int64_t n, int64_t k, const std::vector<float>& values, const std::string& name) {
  constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
  for (Isa isa : supported_isas())
    for (DType product : kDTypes)
      for (DType dtype : kDTypes) {
        const int64_t size = dtype_size(dtype), stride = k * size + 6;
        std::vector<char> out(size_t(n * stride + 4), 0x55), expected = out;
        w.product_dtype = product;
        block_kernels_for(isa).decode(w, n, k, dtype, out.data(), stride);
        for (int64_t i = 0; i < n * k; ++i) {
          const uint32_t bits = rounded_bits(round_to(values[size_t(i)], product), dtype);
          char* at = expected.data() + i / k * stride + i % k * size;
          std::memcpy(at, &bits, size_t(size));
        }
        check_of(out == expected, name, " ", isa_name(isa), " decoded to ", dtype_name(dtype), " by ", dtype_name(product));
      }
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
  kScalarBlockKernels.gemm(w.rows, w.n, x.packed.data(), x.stride, m, w.k, expected.data(), w.n, false);
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
    kernels.gemm(w.rows, w.n, x.packed.data(), x.stride, m, w.k, out.data(), w.n + 1, true);
    for (int64_t j = 0; j < m; ++j) {
      for (int64_t i = 0; i < w.n; ++i)
        check_of(out[size_t(j * (w.n + 1) + i)] == 1.0f + expected[size_t(j * w.n + i)], name, " ", isa_name(isa));
      check_of(out[size_t(j * (w.n + 1) + w.n)] == 1.0f, name, " ", isa_name(isa), " wrote beyond its columns");
    }
    // One row at a time gives the same bits.
    for (int64_t j = 0; j < m; j += 5)
      for (int64_t i = 0; i < w.n; ++i) {
        float one;
        kernels.gemm(from_row(w.rows, i), 1, x.packed.data() + j * x.stride, x.stride, 1, w.k, &one, 1, false);
        check_of(one == expected[size_t(j * w.n + i)], name, " ", isa_name(isa), " row ", i, " of w, ", j, " of x");
      }
    for (int64_t i = 0; i < w.n; ++i) {
      kScalarBlockKernels.values(w.rows, i, w.k, values.data());
      kernels.values(w.rows, i, w.k, decoded.data());
      check_of(std::memcmp(values.data(), decoded.data(), size_t(w.k) * 4) == 0, name, " ", isa_name(isa), " values");
    }
    std::vector<float> all(size_t(w.n * w.k));
    for (int64_t i = 0; i < w.n; ++i) kScalarBlockKernels.values(w.rows, i, w.k, all.data() + i * w.k);
    if (m == 1 && w.n == 1) check_decoding(w.rows, w.n, w.k, all, name);
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
    for (int64_t k : {columns, 5 * columns, int64_t{2304}, int64_t{4352}})
      for (int64_t n : {1, 7, 8, 13, 35})
        for (int64_t m : {0, 1, 2, 5, 6, 11, 65}) {
          if (k > columns && n * m > 20 && (k > 2304 || n != 13 || m != 11)) continue;
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
    kernels.gemm(w.rows, 3, x.packed.data(), x.stride, 2, 512, out, 3, false);
    for (int i = 0; i < 3; ++i) check_of(std::isnan(out[i]) && std::isfinite(out[3 + i]), isa_name(isa));
  }
}

// E4M3 (arXiv 2209.05433), by its definition.
float fp8_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float size = exponent ? std::ldexp(float(8 + mantissa), exponent - 10) : std::ldexp(float(mantissa), -9);
  return (code & 127) == 127 ? NAN : code & 128 ? -size : size;
}

// A matrix in FP8 whose scales are by blocks of block_rows and `group` columns; block_rows 0: one row of scales for all.
void check_fp8(int64_t n, int64_t k, int64_t block_rows, int64_t group, ScaleType type, int64_t first) {
  std::mt19937 random(uint32_t(n * k + group));
  const int64_t groups = ceil_div(k, group), scale_rows = block_rows ? ceil_div(first + n, block_rows) : 1;
  std::vector<uint8_t> codes(size_t(n * k + 1)), scales(size_t(scale_rows * groups * scale_size(type) + 1));
  for (uint8_t& c : codes)
    while (((c = uint8_t(random())) & 127) == 127) {
    }
  std::vector<float> of_group(size_t(scale_rows * groups)), values(size_t(n * k));
  for (size_t i = 0; i < of_group.size(); ++i) {
    const uint32_t e = 110 + random() % 20;
    const float any = std::ldexp(float(random() % 1000 + 1), -14);
    float& scale = of_group[i] = type == ScaleType::kExponent ? std::ldexp(1.0f, int(e) - 127)
                                 : type == ScaleType::kF16    ? round_to(any, DType::kF16)
                                 : type == ScaleType::kBF16   ? round_to(any, DType::kBF16)
                                                              : any;
    const uint32_t bits = type == ScaleType::kExponent ? e
                          : type == ScaleType::kF32 ? std::bit_cast<uint32_t>(scale)
                                                    : rounded_bits(scale, type == ScaleType::kF16 ? DType::kF16 : DType::kBF16);
    std::memcpy(scales.data() + 1 + i * size_t(scale_size(type)), &bits, size_t(scale_size(type)));
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < k; ++c)
      values[size_t(i * k + c)] = fp8_value(codes[size_t(1 + i * k + c)]) *
                                  of_group[size_t((block_rows ? (first + i) / block_rows : 0) * groups + c / group)];
  BlockRows w{BlockCode::kGroupedFp8, codes.data() + 1, k};
  w.group = group;
  w.scale_type = type;
  w.scales = scales.data() + 1;
  w.scale_row_bytes = block_rows ? groups * scale_size(type) : 0;
  w.scale_rows = block_rows ? block_rows : 1;
  w.first_scale_row = first;
  const std::string name = str_cat("FP8 n ", n, " k ", k, " blocks of ", block_rows, " x ", group, " from row ", first);
  CHECK_EQ(block_bytes(w, n, k), n * k + scale_rows * groups * scale_size(type));
  for (int64_t skip : {int64_t{0}, n / 2}) {
    const std::vector<float> rest(values.begin() + skip * k, values.end());
    check_decoding(from_row(w, skip), n - skip, k, rest, str_cat(name, " without ", skip));
    for (Isa isa : supported_isas()) {
      std::vector<float> row(size_t(k + 1), 7.0f);
      block_kernels_for(isa).values(w, skip, k, row.data());
      check_of(std::memcmp(row.data(), rest.data(), size_t(k) * 4) == 0 && row[size_t(k)] == 7, name, " ", isa_name(isa),
               " values");
    }
  }
}

void test_fp8() {
  for (int64_t k : {1, 31, 32, 33, 200, 2800})
    for (int64_t group : {int64_t{40}, int64_t{64}, int64_t{128}, k})
      for (int64_t block_rows : {0, 1, 3, 128})
        check_fp8(k > 2000 ? 2 : 7, k, block_rows, group, ScaleType((k + block_rows) % 4), block_rows > 1 ? block_rows - 1 : 0);
}

// Every code with scales at which products are subnormal, zero, infinite or negative.
void test_extremes_of_fp8() {
  std::vector<uint8_t> codes(256);
  for (int c = 0; c < 256; ++c) codes[size_t(c)] = uint8_t(c);
  for (float scale : {0.0f, -0.0f, 1.0f, -0.01f, 1e-45f, -1e-38f, 0x1p-126f, 0x1.fp-121f, 0x1p-100f, 0x1.8p-101f, 0x1.fffffep+99f,
                      0x1p+100f, 0x1.9p+100f, 0x1p+118f, 0x1.6p+119f, -3.4e38f}) {
    BlockRows w{BlockCode::kGroupedFp8, codes.data(), 256};
    w.group = 256;
    w.scales = &scale;
    for (Isa isa : supported_isas()) {
      uint16_t out[256];
      block_kernels_for(isa).decode(w, 1, 256, DType::kBF16, out, 512);
      for (int c = 0; c < 256; ++c) {
        const float value = fp8_value(uint8_t(c)) * scale;
        const bool same = std::isnan(value) ? std::isnan(bf16_to_f32(out[c])) : out[c] == f32_to_bf16(value);
        check_of(same, isa_name(isa), " code ", c, " by ", double(scale));
      }
    }
  }
}

}  // namespace

int main() {
  test_products();
  test_wide_exponents();
  test_non_finite();
  test_fp8();
  test_extremes_of_fp8();
  return check::result("test_blocks");
}
