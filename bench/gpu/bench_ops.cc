// Measures the kernels one by one; prints a line of JSON per result.
//   bench_ops [--quick] [--only expert_ffn,route,...]
#include <iostream>
#include <string>

#include "base/error.h"
#include "measure.h"

namespace {

struct Family {
  const char* name;
  void (*run)(bench::Context&);
};
constexpr Family kFamilies[] = {{"expert_ffn", bench::bench_expert_ffn},
                                {"moe_layer", bench::bench_moe_layer},
                                {"route", bench::bench_route},
                                {"attention", bench::bench_attention},
                                {"gated_delta", bench::bench_gated_delta},
                                {"linear", bench::bench_linear},
                                {"head_linear", bench::bench_head_linear},
                                {"rows", bench::bench_rows},
                                {"sample", bench::bench_sample},
                                {"tiles", bench::bench_tiles}};

int usage() {
  std::cerr << "bench_ops [--quick] [--only NAME,NAME...]; names:";
  for (const Family& family : kFamilies) std::cerr << " " << family.name;
  std::cerr << "\n";
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  bool quick = false;
  std::string only;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--quick") {
      quick = true;
    } else if (argument == "--only" && i + 1 < argc) {
      only = "," + std::string(argv[++i]) + ",";
    } else {
      return usage();
    }
  }
  int failures = 0;
  try {
    bench::Context context(quick);
    bench::measure_ceilings(context);
    for (const Family& family : kFamilies) {
      if (!only.empty() && only.find("," + std::string(family.name) + ",") == std::string::npos) continue;
      try {
        family.run(context);
      } catch (const lynx_rt::Error& e) {
        ++failures;
        std::cerr << "bench_ops: " << family.name << ": " << e.what() << "\n";
        bench::Line(context, family.name).add("error", e.what());
      }
    }
  } catch (const lynx_rt::Error& e) {
    std::cerr << "bench_ops: " << e.what() << "\n";
    return 1;
  }
  return failures == 0 ? 0 : 1;
}
