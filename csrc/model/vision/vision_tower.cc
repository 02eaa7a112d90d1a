#include "model/vision/vision_tower.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>

#include "checkpoint/tensor_values.h"
#include "model/rope.h"

namespace lynx_rt {

namespace {

constexpr int64_t kPartRows = 1024;  // most rows that norms and products take at a time, which bounds their memory
constexpr int64_t kPageSize = 16;
constexpr float kNormEps = 1e-6f;  // of all norms

int64_t pages_of(int64_t num_patches) { return ceil_div(num_patches, kPageSize); }

// Returns a weight's values, which are in the backend's memory.
std::vector<float> values_of(Backend& backend, const WeightView& weight) {
  const int64_t count = weight.rows * weight.cols;
  std::vector<uint8_t> bytes(size_t(count * dtype_size(weight.dtype)));
  backend.read(bytes.data(), weight.data, int64_t(bytes.size()));
  std::vector<float> values(size_t(count), 0.0f);
  load_floats(bytes.data(), weight.dtype, count, values.data());
  return values;
}

// Returns the rows that norms and products take at a time.
int64_t part_rows(int64_t merged) { return std::max<int64_t>(1, kPartRows / merged) * merged; }

// Returns the radians per row or column of each pair of columns that turns with it.
std::vector<float> axial_angles(const VisionConfig& config) {
  RopeConfig rope;
  rope.theta = config.rope_theta;
  rope.dim = config.head_dim() / 2;
  return rope_angles(rope, 1).inverse;
}

// The two entries of an axis of the position table that a patch lies between, and how far it is from the first to the second.
struct Tap {
  int64_t first, second;
  float weight;
};

// Returns the taps of `size` patches that reach from the first to the last of `side` entries.
std::vector<Tap> taps(int64_t size, int64_t side) {
  std::vector<Tap> out;
  for (int64_t i = 0; i < size; ++i) {
    const float at = float(i) * float(side - 1) / float(std::max<int64_t>(size - 1, 1)), floor = std::floor(at);
    out.push_back({int64_t(floor), std::min(int64_t(floor) + 1, side - 1), at - floor});
  }
  return out;
}

}  // namespace

VisionTower::VisionTower(Backend& backend, const VisionConfig& config, const VisionWeights& weights, int64_t max_patches)
    : backend_(backend),
      config_(config),
      weights_(weights),
      max_patches_(max_patches),
      merged_(config.merge_size * config.merge_size),
      part_(part_rows(merged_)),
      table_(values_of(backend, weights.positions)),
      inverse_(axial_angles(config)),
      x_(backend, checked_mul(max_patches, config.hidden_size, "vision tower"), "vision tower"),
      qkv_(backend, checked_mul(max_patches, 3 * config.hidden_size, "vision tower"), "vision tower"),
      cos_(backend, checked_mul(max_patches, config.head_dim() / 2, "vision tower"), "vision tower"),
      sin_(backend, checked_mul(max_patches, config.head_dim() / 2, "vision tower"), "vision tower"),
      k_(backend,
         checked_mul(pages_of(max_patches) * kPageSize, config.hidden_size * dtype_size(backend.compute_dtype()), "vision tower"),
         "vision tower"),
      v_(backend, k_.bytes(), "vision tower"),
      patches_(backend, part_ * config.patch_columns(), "vision tower"),
      result_(backend, checked_mul(max_patches / merged_, config.out_columns(), "vision tower"), "vision tower"),
      attended_(backend, max_patches, config.hidden_size, "vision tower"),
      normed_(backend, part_, config.hidden_size, "vision tower"),
      normed_blocks_(backend, config.deepstack.empty() ? 0 : part_ / merged_, config.merged_columns(), "vision tower"),
      cache_{k_.get(), v_.get(), backend.compute_dtype(), pages_of(max_patches), kPageSize, config.num_heads, config.head_dim()},
      positions_(size_t(max_patches)),
      pages_(size_t(pages_of(max_patches))),
      slots_(size_t(max_patches)) {
  std::iota(positions_.begin(), positions_.end(), 0);
  std::iota(pages_.begin(), pages_.end(), 0);
  std::iota(slots_.begin(), slots_.end(), 0);
}

template <class Visit>
void VisionTower::for_each_part(Visit visit) {
  for (int64_t first = 0; first < num_patches_; first += part_) visit(first, std::min(part_, num_patches_ - first));
}

std::vector<VisionTower::Patch> VisionTower::places(int64_t grid_height, int64_t grid_width) const {
  const int64_t m = config_.merge_size;
  std::vector<Patch> out;
  for (int64_t r = 0; r < grid_height; r += m)
    for (int64_t c = 0; c < grid_width; c += m)
      for (int64_t i = 0; i < merged_; ++i) out.push_back({r + i / m, c + i % m});
  return out;
}

void VisionTower::write_positions(const std::vector<Patch>& places, int64_t grid_height, int64_t grid_width) {
  const int64_t h = config_.hidden_size, quarter = int64_t(inverse_.size());
  const int64_t side = int64_t(std::sqrt(double(config_.num_positions)));
  const std::vector<Tap> rows = taps(grid_height, side), columns = taps(grid_width, side);
  std::vector<float> x(size_t(part_ * h)), cos(size_t(part_ * 2 * quarter)), sin(cos.size());
  for_each_part([&](int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const Patch& place = places[size_t(first + i)];
      const Tap &r = rows[size_t(place.row)], &c = columns[size_t(place.column)];
      const float *a = table_.data() + (r.first * side + c.first) * h, *b = table_.data() + (r.first * side + c.second) * h;
      const float *d = table_.data() + (r.second * side + c.first) * h, *e = table_.data() + (r.second * side + c.second) * h;
      const float wa = (1 - r.weight) * (1 - c.weight), wb = (1 - r.weight) * c.weight;
      const float wd = r.weight * (1 - c.weight), we = r.weight * c.weight;
      float* to = x.data() + i * h;
      for (int64_t j = 0; j < h; ++j) to[j] = wa * a[j] + wb * b[j] + wd * d[j] + we * e[j];
      for (int64_t j = 0; j < 2 * quarter; ++j) {
        const float at = float(j < quarter ? place.row : place.column);
        const double angle = double(at * inverse_[size_t(j % quarter)]);
        cos[size_t(i * 2 * quarter + j)] = float(std::cos(angle));
        sin[size_t(i * 2 * quarter + j)] = float(std::sin(angle));
      }
    }
    backend_.write(x_.get() + first * h, x.data(), count * h * int64_t(sizeof(float)));
    backend_.write(cos_.get() + first * 2 * quarter, cos.data(), count * 2 * quarter * int64_t(sizeof(float)));
    backend_.write(sin_.get() + first * 2 * quarter, sin.data(), count * 2 * quarter * int64_t(sizeof(float)));
  });
}

void VisionTower::begin(const ImagePatches& patches, int64_t grid_height, int64_t grid_width) {
  const int64_t h = config_.hidden_size, columns = config_.patch_columns();
  for (const auto& [field, size] : {std::pair("grid_height", grid_height), std::pair("grid_width", grid_width)})
    if (size < 1 || size % config_.merge_size != 0)
      invalid(field, "expected a positive multiple of ", config_.merge_size, " patches, got ", size);
  if (grid_height > max_patches_ / grid_width)
    invalid("grid_height", "expected at most ", max_patches_, " patches, got ", grid_height, " * ", grid_width);
  num_patches_ = grid_height * grid_width;
  next_block_ = 0;
  query_start_[1] = int32_t(num_patches_);
  write_positions(places(grid_height, grid_width), grid_height, grid_width);
  const LinearPart part{weights_.patch, weights_.patch_bias};
  std::vector<float> values(size_t(std::min(part_, num_patches_) * columns));
  for_each_part([&](int64_t first, int64_t count) {
    patches.copy_rows(first, count, values.data());
    backend_.write(patches_.get(), values.data(), count * columns * int64_t(sizeof(float)));
    backend_.linear(Activations(patches_.get(), count, columns), {&part, 1}, true, x_.get() + first * h, h);
  });
}

bool VisionTower::advance(int64_t num_blocks) {
  const int64_t end = std::min(config_.depth, next_block_ + num_blocks);
  if (num_patches_ == 0) fail(ErrorCode::kInternal, "", "vision tower: no image was begun");
  BatchView batch;
  batch.num_rows = num_patches_;
  batch.num_seqs = 1;
  batch.positions = positions_.data();
  batch.slots = slots_.data();
  batch.query_start = query_start_;
  batch.block_tables = pages_.data();
  batch.max_blocks = pages_of(num_patches_);
  batch.heads_per_kv_head = 1;
  const std::string name = "vision";
  const auto blocks = [&](const BatchView& rows) {
    for (; next_block_ < end; ++next_block_) {
      run_block(weights_.blocks[size_t(next_block_)], rows);
      const auto after = std::find(config_.deepstack.begin(), config_.deepstack.end(), next_block_);
      if (after == config_.deepstack.end()) continue;
      const int64_t j = after - config_.deepstack.begin();
      run_merger(weights_.deepstack[size_t(j)], true, (1 + j) * config_.out_hidden_size);
    }
    if (end == config_.depth) run_merger(weights_.merger, false, 0);
  };
  backend_.run({name, k_.get()}, backend_.begin_step(batch), std::ref(blocks));
  backend_.end_step({});
  return next_block_ == config_.depth;
}

void VisionTower::run_block(const VisionBlockWeights& w, const BatchView& batch) {
  const int64_t h = config_.hidden_size;
  for_each_part([&](int64_t first, int64_t count) {
    backend_.layernorm(x_.get() + first * h, w.norm1, w.norm1_bias, kNormEps, count, normed_);
    const LinearPart part{w.qkv, w.qkv_bias};
    backend_.linear(normed_, {&part, 1}, false, qkv_.get() + first * 3 * h, 3 * h);
  });
  QkvPostArgs post{};
  post.qkv = qkv_.get();
  post.num_heads = config_.num_heads;
  post.rope = {cos_.get(), sin_.get(), config_.head_dim()};
  backend_.qkv_post(post, batch, cache_);
  AttentionArgs args{};
  args.q = qkv_.get();
  args.q_stride = 3 * h;
  args.num_heads = config_.num_heads;
  args.scale = 1.0f / std::sqrt(float(config_.head_dim()));
  args.causal = false;
  backend_.attention(args, batch, cache_, attended_);
  const LinearPart proj{w.proj, w.proj_bias};
  backend_.linear(attended_, {&proj, 1}, true, x_.get(), h);
  for_each_part([&](int64_t first, int64_t count) {
    float* rows = x_.get() + first * h;
    backend_.layernorm(rows, w.norm2, w.norm2_bias, kNormEps, count, normed_);
    backend_.mlp(normed_, w.mlp, {}, rows, Activation::kGeluTanh);
  });
}

// The rows of a merge block follow each other, so that they are one row of merged_columns() columns.
void VisionTower::run_merger(const VisionMergerWeights& w, bool norm_merged, int64_t out_column) {
  const int64_t h = config_.hidden_size, columns = config_.merged_columns();
  for_each_part([&](int64_t first, int64_t count) {
    const int64_t rows = count / merged_;
    Activations& normed = norm_merged ? normed_blocks_ : normed_;
    backend_.layernorm(x_.get() + first * h, w.norm, w.norm_bias, kNormEps, norm_merged ? rows : count, normed);
    backend_.mlp(Activations(normed.f32(), rows, columns), w.mlp, {},
                 result_.get() + first / merged_ * config_.out_columns() + out_column, Activation::kGelu, false, 1,
                 config_.out_columns());
  });
}

void VisionTower::output(float* out) {
  if (num_patches_ == 0 || next_block_ < config_.depth)
    fail(ErrorCode::kInternal, "", "vision tower: ", next_block_, " of ", config_.depth, " blocks are done");
  backend_.copy(out, result_.get(), num_rows() * config_.out_columns() * int64_t(sizeof(float)));
}

int64_t VisionTower::bytes(const VisionConfig& c, const Backend& backend, int64_t max_patches) {
  const int64_t merged = c.merge_size * c.merge_size;
  const int64_t floats = 5 * c.hidden_size + c.head_dim();  // x, qkv and attended; cos and sin
  const int64_t keys_and_values = 2 * c.hidden_size * dtype_size(backend.compute_dtype());
  return max_patches * (floats * int64_t(sizeof(float)) + backend.rounded_row_bytes(c.hidden_size) + keys_and_values) +
         max_patches / merged * c.out_columns() * int64_t(sizeof(float));
}

// The rows of begin() and of the mergers' MLPs are rounded by their products.
TowerLimits VisionTower::limits(const VisionConfig& c) {
  TowerLimits limits;
  limits.max_rows = part_rows(c.merge_size * c.merge_size);
  limits.max_columns = std::max(c.hidden_size, c.patch_columns());
  limits.mlp_width = std::max(c.hidden_size, c.intermediate_size);
  limits.head_dim = c.head_dim();
  return limits;
}

}  // namespace lynx_rt
