#include "base/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>

#include "base/error.h"

namespace lynx_rt {

static constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amxbf16"};

const char* isa_name(Isa isa) { return kNames[int(isa)]; }

#if defined(__x86_64__)
// Linux grants the tile registers on request (Documentation/arch/x86/xstate.rst). The answer holds for all threads, including
// those started before. It is no where a signal stack is too small for the registers, where a seccomp filter forbids the call,
// and before Linux 5.16.
static bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kNeeded) != kNeeded) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

Isa best_isa() {
#if defined(__x86_64__)
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) return Isa::kScalar;
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")))
    return Isa::kAvx2;
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::kAvx512;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Vnni;
  static const bool amx = has_amx();
  return amx ? Isa::kAmxBf16 : Isa::kAvx512Bf16;
#else
  return Isa::kScalar;
#endif
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> out;
  for (int i = 0; i <= int(best_isa()); ++i) out.push_back(Isa(i));
  return out;
}

Isa resolve_isa(const std::string& name) {
  if (name.empty()) {
    const char* forced = std::getenv("LYNX_RT_ISA");
    return forced && *forced ? resolve_isa(forced) : best_isa();
  }
  for (int i = 0; i <= int(Isa::kAmxBf16); ++i) {
    if (name != kNames[i]) continue;
    if (Isa(i) > best_isa())
      fail(ErrorCode::kUnsupported, "isa", "isa: this CPU does not support ", name, "; it supports up to ", isa_name(best_isa()));
    return Isa(i);
  }
  invalid("isa", "expected scalar, avx2, avx512, avx512vnni, avx512bf16 or amxbf16, got \"", name, "\"");
}

}  // namespace lynx_rt
