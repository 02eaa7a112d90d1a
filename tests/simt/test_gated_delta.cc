// Compares gated_delta_rule() of the CUDA backend with the CPU's, and tests its order guarantee bit by bit: cut into pieces, beside other
// sequences, and in padded decode steps.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "backend/device_array.h"
#include "check.h"

using namespace lynx_rt;

namespace {

std::mt19937 generator(12);
std::vector<float> random_floats(int64_t count, float scale = 1, float mean = 0) {
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(generator);
  return values;
}

// Rows [begin, end) of a sequence.
struct Span {
  int seq;
  int64_t begin, end;
};

// A layer with random weights, whose columns lie kind by kind, and three sequences.
class Layer {
 public:
  explicit Layer(const DeltaShape& s)
      : shape(s),
        conv_(random_floats(s.conv_width * s.channels(), 0.7f)),
        rate_(random_floats(s.value_heads, 1)),
        dt_bias_(random_floats(s.value_heads)),
        norm_(random_floats(s.value_dim, 0.3f, 1)) {
    for (const int64_t length : {23, 9, 1}) rows.push_back(random_floats(length * s.projected_columns()));
    for (float& rate : rate_) rate = -std::exp(rate);
  }

  int64_t length(int seq) const { return int64_t(rows[size_t(seq)].size()) / shape.projected_columns(); }
  WeightView view(const std::vector<float>& values, int64_t num_rows = 1) const {
    return {values.data(), DType::kF32, num_rows, int64_t(values.size()) / num_rows};
  }

  DeltaShape shape;
  std::vector<std::vector<float>> rows;
  std::vector<float> conv_, rate_, dt_bias_, norm_;
};

// A layer on a backend, with the states of its sequences in slots 2, 0 and 1.
class Placed {
 public:
  Placed(const Layer& layer, const char* device) : layer_(layer) {
    BackendOptions o;
    o.device = device;
    o.compute_dtype = std::string(device) == "cpu" ? DType::kF32 : DType::kBF16;
    o.num_threads = 1;
    backend_ = make_backend(o);
    conv_ = backend_->place(layer.view(layer.conv_, layer.shape.conv_width), WeightUse::kVector);
    rate_ = backend_->place(layer.view(layer.rate_), WeightUse::kVector);
    dt_bias_ = backend_->place(layer.view(layer.dt_bias_), WeightUse::kVector);
    norm_ = backend_->place(layer.view(layer.norm_), WeightUse::kVector);
    StepLimits limits;
    limits.max_rows = limits.max_logit_rows = 64;
    limits.hidden_size = limits.max_columns = layer.shape.values();
    limits.num_heads = limits.num_kv_heads = 1;
    limits.head_dim = 16;
    limits.vocab_size = 10;
    backend_->reserve(limits);
    stride_ = round_up(layer.shape.state_size() * int64_t(sizeof(float)), 64);
    states_ = DeviceArray<char>(*backend_, 3 * stride_, "states");
    x_ = DeviceArray<float>(*backend_, 64 * layer.shape.projected_columns(), "x");
    out_ = Activations(*backend_, 64, layer.shape.values(), "out");
  }

  // Returns the rows of all spans.
  std::vector<float> run(const std::vector<Span>& spans, Phase phase = Phase::kPrefill) {
    const int64_t width = layer_.shape.projected_columns();
    std::vector<float> x;
    std::vector<int32_t> start = {0}, slots, positions;
    for (const Span& s : spans) {
      const std::vector<float>& rows = layer_.rows[size_t(s.seq)];
      x.insert(x.end(), rows.begin() + s.begin * width, rows.begin() + s.end * width);
      for (int64_t p = s.begin; p < s.end; ++p) positions.push_back(int32_t(p));
      start.push_back(int32_t(positions.size()));
      slots.push_back((s.seq + 2) % 3);
    }
    const std::vector<int32_t> zeros(positions.size() + spans.size(), 0);
    const std::vector<int64_t> no_slots(positions.size(), -1);
    BatchView batch;
    batch.num_rows = int64_t(positions.size());
    batch.num_seqs = int64_t(spans.size());
    batch.token_ids = zeros.data();
    batch.positions = positions.data();
    batch.slots = no_slots.data();
    batch.query_start = start.data();
    batch.block_tables = zeros.data();
    batch.max_blocks = 1;
    batch.state_slots = slots.data();
    batch.phase = phase;
    const DeltaShape& s = layer_.shape;
    const int64_t r = s.values_per_key(), keys = s.key_heads * s.key_dim, z = s.channels(), b = z + s.values();
    const GatedDeltaArgs args{x_.get(),
                              width,
                              s,
                              {0, s.key_dim},
                              {keys, s.key_dim},
                              {2 * keys, r * s.value_dim},
                              {z, r * s.value_dim},
                              {b, r},
                              {b + s.value_heads, r},
                              conv_,
                              rate_,
                              dt_bias_,
                              norm_,
                              1e-6f};
    const BatchView rows = backend_->begin_step(batch);
    backend_->write(x_.get(), x.data(), int64_t(x.size() * sizeof(float)));
    backend_->gated_delta_rule(args, rows, {states_.get(), stride_}, out_);
    std::vector<float> result(size_t(batch.num_rows * s.values()));
    backend_->read(result.data(), out_.f32(), int64_t(result.size() * sizeof(float)));
    backend_->end_step({});
    return result;
  }

  // Returns the three states.
  std::vector<float> states() {
    std::vector<float> result(size_t(3 * stride_) / sizeof(float));
    backend_->read(result.data(), states_.get(), 3 * stride_);
    return result;
  }

 private:
  const Layer& layer_;
  std::unique_ptr<Backend> backend_;
  WeightView conv_, rate_, dt_bias_, norm_;
  int64_t stride_ = 0;
  DeviceArray<char> states_;
  DeviceArray<float> x_;
  Activations out_;
};

// Both sum in float32 in orders of their own; a state forgets what it does not read, so that errors do not add up over 23 rows.
void check_close(const std::vector<float>& got, const std::vector<float>& want) {
  CHECK_EQ(got.size(), want.size());
  float largest = 0;
  for (const float v : want) largest = std::max(largest, std::abs(v));
  for (size_t i = 0; i < want.size(); ++i) CHECK(std::abs(got[i] - want[i]) <= 2e-5f * largest);
}

void test_shape(const DeltaShape& shape) {
  const Layer layer(shape);
  const std::vector<Span> whole = {{0, 0, 23}, {1, 0, 9}, {2, 0, 1}};
  Placed cpu(layer, "cpu"), cuda(layer, "cuda");
  const std::vector<float> want = cuda.run(whole);
  check_close(want, cpu.run(whole));
  check_close(cuda.states(), cpu.states());
  const int64_t width = shape.values();
  const auto rows_of = [&](const std::vector<float>& rows, int64_t begin, int64_t end) {
    return std::vector<float>(rows.begin() + begin * width, rows.begin() + end * width);
  };

  Placed pieces(layer, "cuda");
  const int64_t first_row[] = {0, 23, 32};
  const auto check_piece = [&](const Span& span) {
    const std::vector<float> got = pieces.run({span});
    CHECK(got == rows_of(want, first_row[span.seq] + span.begin, first_row[span.seq] + span.end));
  };
  const std::vector<float> first = pieces.run({{1, 0, 3}, {0, 0, 10}});
  CHECK(rows_of(first, 0, 3) == rows_of(want, 23, 26));
  CHECK(rows_of(first, 3, 13) == rows_of(want, 0, 10));
  check_piece({2, 0, 1});
  check_piece({0, 10, 11});
  check_piece({0, 11, 20});
  // Steps that are padded to four rows.
  for (int64_t t = 0; t < 3; ++t) {
    const std::vector<float> two = pieces.run({{0, 20 + t, 21 + t}, {1, 3 + t, 4 + t}}, Phase::kDecodeOnly);
    CHECK(rows_of(two, 0, 1) == rows_of(want, 20 + t, 21 + t));
    CHECK(rows_of(two, 1, 2) == rows_of(want, 26 + t, 27 + t));
  }
  check_piece({1, 6, 9});
  CHECK(pieces.states() == cuda.states());
}

}  // namespace

int main() {
  // Key heads, value heads, dk, dv, width: sizes off the warp, every kernel, and one to three value heads of a key head.
  for (const DeltaShape& shape :
       {DeltaShape{1, 1, 1, 1, 2}, DeltaShape{2, 4, 8, 12, 4}, DeltaShape{2, 6, 33, 40, 3}, DeltaShape{1, 2, 128, 128, 4},
        DeltaShape{1, 1, 130, 7, 16}, DeltaShape{1, 1, 256, 9, 5}, DeltaShape{2, 6, 33, 40, 3, true}})
    test_shape(shape);
  return check::result("test_gated_delta");
}
