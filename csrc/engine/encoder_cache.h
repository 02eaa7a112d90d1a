// Outputs of the vision tower by the name of their image, within a number of bytes. Runs the tower for those that are missing.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "backend/device_array.h"
#include "engine/request_image.h"
#include "lynx_rt/engine.h"
#include "model/vision/vision_tower.h"

namespace lynx_rt {

// Memory for images, in bytes.
struct EncoderMemory {
  int64_t outputs = 0;     // EngineOptions::encoder_cache_memory_bytes, or what is chosen
  int64_t max_tokens = 0;  // of an image
  int64_t tower = 0;       // of the tower, while it works on an image of so many tokens
  int64_t all() const { return outputs + tower; }
};
// `rest`: what the KV cache would get without images, of which outputs and tower together get at most an eighth unasked. Nothing for a
// model that reads text alone.
EncoderMemory encoder_memory(const ModelConfig& config, const Backend& backend, const EngineOptions& options, int64_t rest);

// An output that no request holds stays until its room is needed, the one that was given back first going first. The tower finishes
// the image that it has begun. It runs a limited number of patches through its blocks in a step, so that requests that decode go on, and
// the prompt of an image need not wait for the images of other requests; while nobody decodes, a whole image at least. The number does not
// depend on time, so neither do the batches. Thread-safety: none; the engine's lock covers it.
class EncoderCache final : public ImageOutputs {
 public:
  EncoderCache(Backend& backend, const VisionConfig& config, const VisionWeights& weights, const EncoderMemory& memory);

  const EncoderMemory& memory() const { return memory_; }
  // Throws kInvalidArgument (field images) for an image that does not fit.
  void check_size(const RequestImage& image) const;

  // Runs the tower for an image outside of the cache, between steps; the image in the tower starts again. Returns its output.
  DeviceArray<float> encode(const RequestImage& image);

  void begin_step(bool decoding) override;
  bool acquire(RequestImage& image) override;
  void release(RequestImage& image) override;

  // Counters since reset_stats(), and gauges.
  int64_t num_encoded() const { return num_encoded_; }
  int64_t num_found() const { return num_found_; }
  double seconds() const { return seconds_; }  // that the tower ran
  int64_t bytes() const { return bytes_; }
  void reset_stats();
  // Throws kInternal, saying what, where something is inconsistent. num_held: outputs that requests hold.
  void check_integrity(int64_t num_held) const;

 private:
  struct Entry {
    DeviceArray<float> output;
    int64_t num_references = 0;
    uint64_t released = 0;  // rising; when the last reference went
  };
  using Entries = std::map<std::string, Entry>;

  bool make_room(int64_t bytes);
  bool begin(const RequestImage& image);
  void drop_current();
  bool advance();  // returns whether the tower is done with its image
  void hold(Entry& entry, RequestImage& image);

  Backend& backend_;
  const VisionConfig& config_;
  EncoderMemory memory_;
  VisionTower tower_;
  Entries entries_;
  int64_t bytes_ = 0;
  uint64_t num_released_ = 0;
  // The image in the tower.
  Entries::iterator current_;  // entries_.end(): none
  int64_t num_patches_ = 0;
  int64_t patch_blocks_left_ = 0;  // patches times blocks that this step may still run
  int64_t least_blocks_ = 0;       // blocks that the next image runs in this step at least
  int64_t num_encoded_ = 0, num_found_ = 0;
  double seconds_ = 0;
};

}  // namespace lynx_rt
