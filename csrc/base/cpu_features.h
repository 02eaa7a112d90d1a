// Instruction sets that the CPU kernels are compiled for, and which one this machine uses.
#pragma once
#include <string>
#include <vector>

namespace lynx_rt {

// Instruction sets in rising order of preference. A CPU may have one without having all of those before it.
enum class Isa {
  kScalar,
  kAvx2,
  kAvxVnni,
  kAvx512,
  kAvx512Vnni,
  kAvx512Bf16,
  kAmxBf16,
  kNeon,
  kNeonDotprod,
  kNeonI8mm,
  kNeonBf16
};

const char* isa_name(Isa isa);  // "scalar", "avx2", .., "amxbf16", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16"
// Whether CPU and operating system support it. The first call with kAmxBf16 requests the tile registers.
bool supported(Isa isa);
bool has_crc32c();                  // whether the CPU has instructions for CRC-32C: SSE4.2, or the CRC extension of ARM
std::vector<Isa> supported_isas();  // in the order of Isa, from kScalar to best_isa()
Isa best_isa();                     // the last that is supported
// Returns the instruction set of that name; where it is empty, the one that LYNX_RT_ISA names, else best_isa(). Throws
// kInvalidArgument for an unknown name, kUnsupported for a set that this CPU lacks.
Isa resolve_isa(const std::string& name);

}  // namespace lynx_rt
