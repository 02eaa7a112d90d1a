// CRC-32C (Castagnoli), the checksum of an expert file's records. Source: RFC 3720 section 12.1 and appendix B.4.
#pragma once
#include <cstdint>

namespace lynx_rt {

// Returns the checksum of `bytes` bytes that follow others whose checksum is `crc` (0 = none). The CPU's instructions compute it where
// there are any; the result is the same. Thread-safety: safe from any thread. Test: tests/cpp/test_crc32c.cc.
uint32_t crc32c(const void* data, int64_t bytes, uint32_t crc = 0);
uint32_t crc32c_by_table(const void* data, int64_t bytes, uint32_t crc = 0);

}  // namespace lynx_rt
