#include "base/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <cstdlib>

#include "base/error.h"

namespace lynx_rt {

static constexpr const char* kNames[] = {"scalar",  "avx2", "avxvnni",      "avx512",    "avx512vnni", "avx512bf16",
                                         "amxbf16", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16"};
static constexpr int kIsas = sizeof kNames / sizeof *kNames;

const char* isa_name(Isa isa) { return kNames[int(isa)]; }

#if defined(__x86_64__)
// Older compilers do not know this feature in __builtin_cpu_supports().
static bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

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

#if defined(__aarch64__)
// Extensions of armv8-a, as bits of what Linux says (Documentation/arch/arm64/elf_hwcaps.rst), and as macOS names them. The numbers are
// here because an older C library does not have all of them.
struct Extension {
  unsigned long auxiliary, bit;  // AT_HWCAP or AT_HWCAP2
  const char* name;
};
constexpr Extension kDotProd{16, 1ul << 20, "hw.optional.arm.FEAT_DotProd"}, kI8mm{26, 1ul << 13, "hw.optional.arm.FEAT_I8MM"},
    kBf16{26, 1ul << 14, "hw.optional.arm.FEAT_BF16"}, kCrc32{16, 1ul << 7, "hw.optional.armv8_crc32"};

static bool has(const Extension& extension) {
#if defined(__linux__)
  return getauxval(extension.auxiliary) & extension.bit;
#elif defined(__APPLE__)
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(extension.name, &value, &bytes, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}
#endif

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kScalar: return true;
    case Isa::kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::kAvxVnni: return supported(Isa::kAvx2) && has_avx_vnni();
    case Isa::kAvx512:
      return supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::kAvx512Vnni: return supported(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512Bf16: return supported(Isa::kAvx512Vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmxBf16: {
      static const bool amx = supported(Isa::kAvx512Bf16) && has_amx();
      return amx;
    }
    default: return false;
  }
#elif defined(__aarch64__)
  switch (isa) {
    case Isa::kScalar:
    case Isa::kNeon: return true;
    case Isa::kNeonDotprod: return has(kDotProd);
    case Isa::kNeonI8mm: return supported(Isa::kNeonDotprod) && has(kI8mm);
    case Isa::kNeonBf16: return supported(Isa::kNeonI8mm) && has(kBf16);
    default: return false;
  }
#endif
  return isa == Isa::kScalar;
}

bool has_crc32c() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("sse4.2");
#elif defined(__aarch64__)
  return has(kCrc32);
#else
  return false;
#endif
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> out;
  for (int i = 0; i < kIsas; ++i)
    if (supported(Isa(i))) out.push_back(Isa(i));
  return out;
}

Isa best_isa() { return supported_isas().back(); }

static std::string names(const std::vector<Isa>& isas) {
  std::string out;
  for (Isa isa : isas) out += str_cat(out.empty() ? "" : ", ", isa_name(isa));
  return out;
}

Isa resolve_isa(const std::string& name) {
  if (name.empty()) {
    const char* forced = std::getenv("LYNX_RT_ISA");
    return forced && *forced ? resolve_isa(forced) : best_isa();
  }
  std::vector<Isa> known;
  for (int i = 0; i < kIsas; ++i) {
    known.push_back(Isa(i));
    if (name != kNames[i]) continue;
    if (supported(Isa(i))) return Isa(i);
    fail(ErrorCode::kUnsupported, "isa", "isa: this CPU does not support ", name, "; it supports ", names(supported_isas()));
  }
  invalid("isa", "expected one of ", names(known), "; got \"", name, "\"");
}

}  // namespace lynx_rt
