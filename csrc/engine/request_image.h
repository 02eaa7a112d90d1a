// Images of a request: where they lie in its prompt, what their tokens' rotary positions are, and their keys in the prefix cache.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lynx_rt/engine.h"
#include "model/model_config.h"
#include "model/vision/image_patches.h"

namespace lynx_rt {

struct RequestImage {
  int64_t position = 0, num_tokens = 0;     // tokens of the prompt
  int32_t grid_height = 0, grid_width = 0;  // patches
  int32_t columns = 0;                      // tokens of a row of the image
  // Rotary positions of the first token, and of a token of text after the image. The image's own tokens have the first one as their time,
  // with their row and column added to it as the others.
  int32_t first_rope_position = 0, next_rope_position = 0;
  std::string name;  // of the content and the grid
  ImagePatches patches;
  const float* output = nullptr;  // of the tower, as long as the request holds it; see EncoderCache

  int64_t end() const { return position + num_tokens; }
};

// Says how the outputs of images get into memory.
class ImageOutputs {
 public:
  virtual ~ImageOutputs() = default;
  // Starts a step. `decoding`: some request waits for its next token.
  virtual void begin_step(bool decoding) = 0;
  // Sets image.output and holds it for the caller. Returns false, and changes nothing of the image, where it is not there in this step.
  virtual bool acquire(RequestImage& image) = 0;
  virtual void release(RequestImage& image) = 0;  // gives back what acquire() held; does nothing where that is nothing
};

// Checks the images of a prompt and returns them with their places. `reads_images`: the model has a tower. Throws kInvalidArgument (field
// images) where an image does not fit the prompt or is unordered, (prompt_token_ids) for an image_token_id outside of all images;
// kUnsupported for a model that reads text alone.
std::vector<RequestImage> check_images(const ModelConfig& config, bool reads_images, std::span<const int32_t> prompt,
                                       std::vector<ImageInput> images);

// Returns the words that tell tokens [first, first + count) from the same tokens of other images: name and offset of each image that has
// some of them; empty without any.
std::vector<int32_t> image_words(std::span<const RequestImage> images, int64_t first, int64_t count);

}  // namespace lynx_rt
