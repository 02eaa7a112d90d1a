// Tests the governor on steps whose cost is known.
#include "engine/governor.h"

#include <cmath>
#include <random>

#include "base/error.h"
#include "check.h"

using namespace lynx_rt;

namespace {

constexpr int kLevels = 6;
constexpr double kShare[kLevels] = {1, 0.9, 0.7, 0.55, 0.5, 0.4};
constexpr double kFixed = 0.004, kPerExpert = 0.0001;

// Runs steps of a machine on which each of `union_before` experts costs kPerExpert. Returns the seconds of the last step.
double run(Governor& governor, int steps, double union_before, double noise = 0, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> around(1 - noise, 1 + noise);
  double seconds = 0;
  for (int i = 0; i < steps; ++i) {
    const double active = kShare[governor.level()] * union_before * around(random);
    seconds = (kFixed + kPerExpert * active) * around(random);
    governor.observe({seconds, union_before, active, kPerExpert * active / (kFixed + kPerExpert * active)});
  }
  return seconds;
}

void test_weakest_level_that_meets_the_target() {
  const double all = kFixed + kPerExpert * 200;
  for (int want = 0; want < kLevels; ++want) {
    Governor governor((kFixed + kPerExpert * 200 * kShare[want]) * 1.06, kLevels);
    run(governor, 200, 200);
    CHECK_EQ(governor.level(), want);
    CHECK(want == 0 || governor.report().steps_over_target >= 1);  // at least the first step had the model's own routing
    CHECK(governor.report().steps_over_target <= 6);
  }
  Governor easy(2 * all, kLevels);
  run(easy, 50, 200);
  CHECK_EQ(easy.level(), 0);
  CHECK_EQ(easy.report().steps_at_level[0], 50);
  CHECK_EQ(easy.report().steps_over_target, 0);
}

void test_impossible_target_takes_the_strongest_level() {
  Governor governor(kFixed / 2, kLevels);
  run(governor, 100, 200);
  CHECK_EQ(governor.level(), kLevels - 1);
  CHECK_EQ(governor.report().steps_over_target, 100);
}

void test_load_that_comes_and_goes() {
  Governor governor(0.0148, kLevels);  // 108 experts
  run(governor, 100, 100);
  CHECK_EQ(governor.level(), 0);
  run(governor, 200, 200);
  CHECK_EQ(governor.level(), 4);
  CHECK(run(governor, 1, 200) <= 0.0148);
  run(governor, 300, 100);
  CHECK_EQ(governor.level(), 0);
}

void test_cost_model() {
  Governor governor(0.016, kLevels);
  run(governor, 400, 200, 0.05);
  const Governor::Report report = governor.report();
  CHECK(report.seconds_per_expert > 0.7 * kPerExpert && report.seconds_per_expert < 1.3 * kPerExpert);
  CHECK(report.fixed_seconds > 0 && report.fixed_seconds < 2 * kFixed);
  int64_t steps = 0, weak = 0;
  for (int i = 0; i < kLevels; ++i)
    steps += report.steps_at_level[size_t(i)], weak += i <= 4 ? report.steps_at_level[size_t(i)] : 0;
  CHECK_EQ(steps, 400);
  CHECK(weak > 350);  // noise must not drive it to the strongest level
  governor.reset_report();
  CHECK_EQ(governor.report().steps_at_level[0], 0);
  CHECK(governor.report().seconds_per_expert > 0);  // its estimates stay
}

// Every level computes all experts; a stronger one reads fewer of them from a disk.
void test_misses() {
  constexpr double kPerMiss = 0.001, kAll = kFixed + kPerExpert * 200;
  for (int want = 0; want < kLevels; ++want) {
    Governor governor((kAll + kPerMiss * 50 * kShare[want]) * 1.035, kLevels);
    for (int i = 0; i < 200; ++i) {
      const double misses = 50 * kShare[governor.level()];
      governor.observe({kAll + kPerMiss * misses, 200, 200, kPerExpert * 200 / kAll, 50, misses, kPerMiss * misses});
    }
    CHECK_EQ(governor.level(), want);
    CHECK(std::abs(governor.report().seconds_per_miss - kPerMiss) < 1e-9);
    CHECK(governor.report().steps_over_target <= 6);
  }
}

void test_no_experts() {
  Governor governor(0.001, kLevels);
  for (int i = 0; i < 10; ++i) governor.observe({0.01, 0, 0, 0});
  CHECK_EQ(governor.level(), 0);
}

void test_text() {
  CHECK(is_slo("slo:tpot_ms=20") && is_slo("slo") && is_slo("slo@0=topk") && !is_slo("slow") && !is_slo("lynx"));
  const SloPlan plan = parse_slo("slo:policy=oea,tpot_ms=12.5@0-1=topk", 4);
  CHECK_EQ(plan.text, std::string("slo:tpot_ms=12.5,policy=oea@0-1=topk"));
  CHECK_EQ(plan.target_seconds, 0.0125);
  CHECK(plan.levels ==
        std::vector<std::string>({"topk@0-1=topk", "oea:k0=3@0-1=topk", "oea:k0=2@0-1=topk", "oea:k0=1@0-1=topk"}));
  CHECK_EQ(parse_slo("slo:tpot_ms=1", 8).levels.front(), std::string("topk"));
  CHECK_EQ(parse_slo("slo:tpot_ms=1,policy=cover", 8).levels[4], std::string("cover:resident=1"));
  for (const auto& [text, says] : {std::pair{"slo", "expected tpot_ms"},
                                   {"slo:", "expected tpot_ms"},
                                   {"slo:tpot_ms=0", "milliseconds > 0"},
                                   {"slo:tpot_ms=x", "\"x\""},
                                   {"slo:tpot_ms=inf", "milliseconds > 0"},
                                   {"slo:tpot=3", "no key \"tpot\""},
                                   {"slo:tpot_ms=3,policy=oaeu", "expected lynx, oea, topk or cover"}}) {
    std::string message = "none";
    try {
      parse_slo(text, 4);
    } catch (const Error& e) {
      message = e.what();
    }
    CHECK(message.find(says) != std::string::npos);
  }
}

}  // namespace

int main() {
  test_weakest_level_that_meets_the_target();
  test_impossible_target_takes_the_strongest_level();
  test_load_that_comes_and_goes();
  test_cost_model();
  test_misses();
  test_no_experts();
  test_text();
  return check::result("test_governor");
}
