// Tests csrc/model/vision/image_patches.h: what comes out are the bits that went in, and pixels of 8 bits take a byte each.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "model/vision/image_patches.h"

using namespace lynx_rt;

namespace {

VisionConfig config(int64_t channels, int64_t frames, int64_t side) {
  VisionConfig v;
  v.in_channels = channels;
  v.temporal_patch_size = frames;
  v.patch_size = side;
  return v;
}

// Patches of a still image of `levels` values in each channel; all are there where a channel has so many pixels.
std::vector<float> still(const VisionConfig& v, int64_t rows, int levels) {
  std::vector<float> values;
  const int64_t area = v.patch_size * v.patch_size;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < v.in_channels; ++c)
      for (int64_t f = 0; f < v.temporal_patch_size; ++f)
        for (int64_t i = 0; i < area; ++i)
          values.push_back((float(7 * (r * area + i) % levels) / 255 - 0.45f) / float(0.2 + 0.1 * c));
  return values;
}

// Compares all rows, read in parts of several sizes.
void check_same(const VisionConfig& v, const std::vector<float>& values, int64_t most_bytes) {
  const ImagePatches patches(v, values);
  const int64_t columns = v.patch_columns(), rows = int64_t(values.size()) / columns;
  CHECK(patches.bytes() <= most_bytes);
  for (int64_t part : {int64_t{1}, int64_t{3}, rows + 1})
    for (int64_t first = 0; first < rows; first += part) {
      const int64_t count = std::min(part, rows - first);
      std::vector<float> out(size_t(count * columns + 1), 12345.0f);
      patches.copy_rows(first, count, out.data());
      CHECK(std::memcmp(out.data(), values.data() + first * columns, size_t(count * columns) * sizeof(float)) == 0);
      CHECK_EQ(out.back(), 12345.0f);
    }
}

int64_t coded(const VisionConfig& v, int64_t rows) {
  return rows * v.in_channels * v.patch_size * v.patch_size + v.in_channels * 256 * 4;
}

void test_still_images() {
  for (const VisionConfig& v : {config(3, 2, 16), config(3, 2, 8), config(1, 1, 1), config(3, 1, 5), config(4, 3, 2)})
    for (int64_t rows : {0, 1, 2, 7, 300})
      for (int levels : {1, 2, 255, 256}) check_same(v, still(v, rows, levels), coded(v, rows));
}

// Values that no byte can number, and frames that differ, are kept as they are.
void test_others() {
  const VisionConfig v = config(3, 2, 4);
  std::vector<float> values = still(v, 300, 256);
  check_same(v, values, coded(v, 300));
  values.back() = 9.5f;  // of the second frame alone
  check_same(v, values, int64_t(values.size()) * 4);
  CHECK(ImagePatches(v, values).bytes() > coded(v, 300));
  values[values.size() - 17] = 9.5f;  // of both, the 257th value
  check_same(v, values, int64_t(values.size()) * 4);
  CHECK(ImagePatches(v, values).bytes() > coded(v, 300));
}

void test_bits() {
  const VisionConfig v = config(1, 1, 2);
  check_same(v, {0.0f, -0.0f, std::numeric_limits<float>::denorm_min(), -std::numeric_limits<float>::max()}, coded(v, 1));
}

}  // namespace

int main() {
  test_still_images();
  test_others();
  test_bits();
  CHECK_EQ(ImagePatches().bytes(), 0);
  return check::result("test_image_patches");
}
