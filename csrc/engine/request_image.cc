#include "engine/request_image.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace lynx_rt {

namespace {

// Checks image number i by itself. Returns its tokens.
int64_t check_image(const VisionConfig& vision, size_t i, const ImageInput& image) {
  const int64_t height = image.grid_height, width = image.grid_width, merge = vision.merge_size;
  if (height < 1 || width < 1 || height % merge != 0 || width % merge != 0)
    invalid("images", "image ", i, ": grid: expected positive multiples of ", merge, ", got ", height, " x ", width);
  const int64_t values = checked_mul(height * width, vision.patch_columns(), "images");
  if (int64_t(image.patches.size()) != values)
    invalid("images", "image ", i, ": patches: expected ", height, " * ", width, " * ", vision.patch_columns(), " values, got ",
            image.patches.size());
  if (!std::all_of(image.patches.begin(), image.patches.end(), [](float v) { return std::isfinite(v); }))
    invalid("images", "image ", i, ": patches: expected finite values, got NaN or infinity");
  if (image.digest.empty()) invalid("images", "image ", i, ": digest: expected bytes that name the content, got none");
  return height * width / (merge * merge);
}

}  // namespace

std::vector<RequestImage> check_images(const ModelConfig& m, bool reads_images, std::span<const int32_t> prompt,
                                       std::vector<ImageInput> images) {
  std::vector<RequestImage> out;
  if (!reads_images && !images.empty())
    fail(ErrorCode::kUnsupported, "images", "images: expected none, since ", m.model_type,
         m.vision ? " without the tensors of its vision tower" : "", " reads text alone, got ", images.size());
  if (!reads_images) return out;
  int64_t next = 0;           // first token after the images so far
  int32_t rope_position = 0;  // of that token
  const auto check_text = [&](int64_t end) {
    for (; next < end; ++next, ++rope_position)
      if (prompt[size_t(next)] == m.image_token_id)
        invalid("prompt_token_ids", "image placeholder ", m.image_token_id, " at position ", next,
                " without an image: expected as many placeholders as the images have tokens");
  };
  for (size_t i = 0; i < images.size(); ++i) {
    ImageInput& image = images[i];
    const int64_t num_tokens = check_image(*m.vision, i, image), merge = m.vision->merge_size;
    if (image.position < next || image.position > int64_t(prompt.size()) - num_tokens)
      invalid("images", "image ", i, ": position: expected room for ", num_tokens, " tokens from ", next,
              " (the end of the image ", "before it) to ", prompt.size(), " (the end of the prompt), got ", image.position);
    check_text(image.position);
    for (int64_t j = 0; j < num_tokens; ++j)
      if (const int32_t id = prompt[size_t(next + j)]; id != m.image_token_id)
        invalid("images", "image ", i, ": expected ", num_tokens, " image tokens ", m.image_token_id, " from position ", next,
                " on, got ", id, " at position ", next + j);
    RequestImage& to = out.emplace_back();
    to.position = image.position;
    to.num_tokens = num_tokens;
    to.grid_height = image.grid_height;
    to.grid_width = image.grid_width;
    to.columns = int32_t(image.grid_width / merge);
    to.first_rope_position = rope_position;
    rope_position += int32_t(std::max(image.grid_height, image.grid_width) / merge);
    to.next_rope_position = rope_position;
    to.name = str_cat(image.grid_height, " ", image.grid_width, " ", image.digest);
    to.patches = ImagePatches(*m.vision, std::move(image.patches));
    next += num_tokens;
  }
  check_text(int64_t(prompt.size()));
  return out;
}

std::vector<int32_t> image_words(std::span<const RequestImage> images, int64_t first, int64_t count) {
  std::vector<int32_t> words;
  for (const RequestImage& image : images) {
    if (image.end() <= first || image.position >= first + count) continue;
    words.push_back(int32_t(image.position - first));
    words.push_back(int32_t(image.name.size()));
    words.insert(words.end(), image.name.begin(), image.name.end());
  }
  return words;
}

}  // namespace lynx_rt
