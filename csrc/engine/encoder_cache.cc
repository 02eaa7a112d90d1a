#include "engine/encoder_cache.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/error.h"

namespace lynx_rt {

namespace {

constexpr int64_t kChosenTokens = 16384;
// Patches times blocks of a step. An image of 1024 x 1024 pixels, 4096 patches in 27 blocks, takes four steps beside decode rows.
constexpr int64_t kPatchBlocks = 1 << 15;

int64_t bytes_of(const VisionConfig& vision, int64_t num_tokens) {
  return checked_mul(checked_mul(num_tokens, vision.out_columns(), "images"), int64_t(sizeof(float)), "images");
}

}  // namespace

EncoderMemory encoder_memory(const ModelConfig& m, const Backend& backend, const EngineOptions& o, int64_t rest) {
  EncoderMemory memory;
  if (!m.vision || m.image_token_id < 0) return memory;
  const int64_t per_token = bytes_of(*m.vision, 1), patches = m.vision->merge_size * m.vision->merge_size;
  const auto tower = [&](int64_t tokens) { return VisionTower::bytes(*m.vision, backend, tokens * patches); };
  if (o.encoder_cache_memory_bytes) {
    memory.outputs = o.encoder_cache_memory_bytes;
    memory.max_tokens = std::min(memory.outputs / per_token, m.max_position_embeddings);
  } else {
    constexpr int64_t kShare = 8, kMany = 1024;  // the tower's bytes of many tokens, whose mean has no rounding to speak of
    memory.max_tokens = std::min({kChosenTokens, m.max_position_embeddings, rest / kShare / (per_token + tower(kMany) / kMany)});
    memory.outputs = memory.max_tokens * per_token;
  }
  memory.tower = tower(memory.max_tokens);
  return memory;
}

EncoderCache::EncoderCache(Backend& backend, const VisionConfig& config, const VisionWeights& weights,
                           const EncoderMemory& memory)
    : backend_(backend),
      config_(config),
      memory_(memory),
      tower_(backend, config, weights, memory.max_tokens * config.merge_size * config.merge_size),
      current_(entries_.end()) {}

void EncoderCache::check_size(const RequestImage& image) const {
  if (const int64_t bytes = bytes_of(config_, image.num_tokens); bytes > memory_.outputs)
    invalid("images", "an image of ", image.num_tokens, " tokens needs ", bytes, " bytes of the encoder cache, which has ",
            memory_.outputs, "; pass encoder_cache_memory_bytes=", bytes, " or more, or a smaller image");
}

DeviceArray<float> EncoderCache::encode(const RequestImage& image) {
  drop_current();
  DeviceArray<float> output(backend_, bytes_of(config_, image.num_tokens) / int64_t(sizeof(float)), "encoder cache");
  tower_.begin(image.patches, image.grid_height, image.grid_width);
  while (!tower_.advance(config_.depth)) {
  }
  tower_.output(output.get());
  return output;
}

// Takes the image out of the tower, which has not been through it.
void EncoderCache::drop_current() {
  if (current_ == entries_.end()) return;
  bytes_ -= current_->second.output.bytes();
  entries_.erase(std::exchange(current_, entries_.end()));
}

void EncoderCache::begin_step(bool decoding) {
  patch_blocks_left_ = kPatchBlocks;
  least_blocks_ = decoding ? 1 : config_.depth;
}

void EncoderCache::hold(Entry& entry, RequestImage& image) {
  ++entry.num_references;
  image.output = entry.output.get();
}

bool EncoderCache::acquire(RequestImage& image) {
  if (image.output) return true;
  if (const auto found = entries_.find(image.name); found != entries_.end() && found != current_) {
    ++num_found_;
    hold(found->second, image);
    return true;
  }
  while (true) {
    if (current_ == entries_.end() && !begin(image)) return false;
    const auto entry = current_;
    if (!advance()) return false;
    if (entry->first != image.name) continue;
    hold(entry->second, image);
    return true;
  }
}

void EncoderCache::release(RequestImage& image) {
  if (!image.output) return;
  image.output = nullptr;
  Entry& entry = entries_.at(image.name);
  if (--entry.num_references == 0) entry.released = ++num_released_;
}

bool EncoderCache::make_room(int64_t bytes) {
  while (bytes_ + bytes > memory_.outputs) {
    auto first = entries_.end();
    for (auto e = entries_.begin(); e != entries_.end(); ++e)
      if (e->second.num_references == 0 && (first == entries_.end() || e->second.released < first->second.released)) first = e;
    if (first == entries_.end()) return false;
    bytes_ -= first->second.output.bytes();
    entries_.erase(first);
  }
  return true;
}

// Gives the image to the tower, which has none. Returns false where there is no room for its output.
bool EncoderCache::begin(const RequestImage& image) {
  const int64_t bytes = bytes_of(config_, image.num_tokens);
  if (!make_room(bytes)) return false;
  Entry entry;
  entry.output = DeviceArray<float>(backend_, bytes / int64_t(sizeof(float)), "encoder cache");
  const double start = now();
  num_patches_ = int64_t(image.grid_height) * image.grid_width;
  tower_.begin(image.patches, image.grid_height, image.grid_width);
  seconds_ += now() - start;
  current_ = entries_.emplace(image.name, std::move(entry)).first;
  bytes_ += bytes;
  return true;
}

bool EncoderCache::advance() {
  const int64_t blocks = std::min(config_.depth, std::max(patch_blocks_left_ / num_patches_, least_blocks_));
  if (blocks == 0) return false;
  patch_blocks_left_ = std::max<int64_t>(0, patch_blocks_left_ - blocks * num_patches_);
  least_blocks_ = 0;
  const double start = now();
  bool done = false;
  try {
    done = tower_.advance(blocks);
    if (done) tower_.output(current_->second.output.get());
  } catch (...) {
    drop_current();
    throw;
  }
  seconds_ += now() - start;
  if (!done) return false;
  ++num_encoded_;
  current_->second.released = ++num_released_;
  current_ = entries_.end();
  return true;
}

void EncoderCache::reset_stats() {
  num_encoded_ = num_found_ = 0;
  seconds_ = 0;
}

void EncoderCache::check_integrity(int64_t num_held) const {
  int64_t references = 0, bytes = 0;
  for (const auto& [name, entry] : entries_) {
    references += entry.num_references;
    bytes += entry.output.bytes();
  }
  if (references != num_held)
    fail(ErrorCode::kInternal, "encoder_cache", "outputs have ", references, " references, but requests hold ", num_held);
  if (bytes != bytes_ || bytes > memory_.outputs)
    fail(ErrorCode::kInternal, "encoder_cache", "outputs take ", bytes, " bytes, counted ", bytes_, ", most ", memory_.outputs);
}

}  // namespace lynx_rt
