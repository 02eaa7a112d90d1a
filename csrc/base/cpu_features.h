// Instruction sets that the CPU kernels are compiled for, and which one this machine uses.
#pragma once
#include <string>
#include <vector>

namespace lynx_rt {

// Instruction sets in rising order: each includes all features of those before it.
enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmxBf16 };

const char* isa_name(Isa isa);  // "scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amxbf16"
Isa best_isa();                 // the highest that CPU and operating system support; the first call requests the tile registers
std::vector<Isa> supported_isas();  // kScalar .. best_isa()
// Returns the instruction set of that name; where it is empty, the one that LYNX_RT_ISA names, else best_isa(). Throws
// kInvalidArgument for an unknown name, kUnsupported for a set that this CPU lacks.
Isa resolve_isa(const std::string& name);

}  // namespace lynx_rt
