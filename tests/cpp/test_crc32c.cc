// Tests csrc/base/crc32c.h: the vectors of its source, and both ways of computing it against each other.
#include "base/crc32c.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.h"

using lynx_rt::crc32c;
using lynx_rt::crc32c_by_table;

namespace {

void test_vectors() {  // RFC 3720 appendix B.4, and the check value of the CRC's catalogue entry
  std::string up, down;
  for (int i = 0; i < 32; ++i) up += char(i), down += char(31 - i);
  const std::vector<std::pair<std::string, uint32_t>> vectors = {
      {"", 0},           {"123456789", 0xe3069283u}, {std::string(32, '\0'), 0x8a9136aau}, {std::string(32, '\xff'), 0x62a8ab43u},
      {up, 0x46dd794eu}, {down, 0x113fdb5cu}};
  for (const auto& [text, expected] : vectors) {
    CHECK_EQ(crc32c(text.data(), int64_t(text.size())), expected);
    CHECK_EQ(crc32c_by_table(text.data(), int64_t(text.size())), expected);
  }
}

// Lengths around multiples of the stretches that are computed side by side, at every alignment, whole and in two parts.
void test_instructions_and_table_agree() {
  std::mt19937_64 random(7);
  std::vector<uint8_t> bytes(100'000);
  for (uint8_t& b : bytes) b = uint8_t(random());
  for (int round = 0; round < 300; ++round) {
    const int64_t near = int64_t(random() % 5) * 12288, begin = int64_t(random() % 64);
    const int64_t length = std::max<int64_t>(0, near + int64_t(random() % 41) - 20),
                  cut = length ? int64_t(random()) % length : 0;
    const uint8_t* p = bytes.data() + begin;
    const uint32_t whole = crc32c(p, length);
    CHECK_EQ(whole, crc32c_by_table(p, length));
    const int64_t first = std::max<int64_t>(0, cut);
    CHECK_EQ(whole, crc32c(p + first, length - first, crc32c(p, first)));
    CHECK_EQ(whole, crc32c_by_table(p + first, length - first, crc32c(p, first)));
  }
}

void test_every_flipped_bit_is_seen() {
  std::vector<uint8_t> bytes(3 * 4096 + 17, 0x5a);
  const uint32_t right = crc32c(bytes.data(), int64_t(bytes.size()));
  int same = 0;
  for (size_t i = 0; i < bytes.size(); i += 13) {
    bytes[i] ^= uint8_t(1 << i % 8);
    same += crc32c(bytes.data(), int64_t(bytes.size())) == right;
    bytes[i] ^= uint8_t(1 << i % 8);
  }
  CHECK_EQ(same, 0);
}

}  // namespace

int main() {
  test_vectors();
  test_instructions_and_table_agree();
  test_every_flipped_bit_is_seen();
  return check::result("test_crc32c");
}
