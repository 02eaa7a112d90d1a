// Decode steps of the engine on random weights (a folder that has only a config.json): time per output token by batch size and
// expert selection, against the time that reading the step's bytes takes. Prints a line of JSON per result.
//   bench_engine MODEL_FOLDER [--batch 1,8,...] [--selection topk,lynx,oea:k0=2] [--steps 64] [--context 128]
//                [--no-dependent-launch] [--quick]
// Policies take turns a few steps at a time, as in `lynx-rt bench decode`.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <set>
#include <sstream>

#include "base/error.h"
#include "lynx_rt/engine.h"
#include "measure.h"

using namespace lynx_rt;

namespace {

double now_ms() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The times of one step that the functions below record.
struct Seen {
  double wait_ms = 0, launch_ms = 0, graph_ms = 0;
  int graphs = 0;
};
Seen seen;
struct Pair {
  cuda::Event begin, end;
};
std::optional<Pair> graph_events;  // while steps are measured

}  // namespace

// The linker replaces cuda::synchronize() and cuda::Graph::launch() by these (--wrap, CMakeLists.txt).
extern "C" {
void __real__ZN7lynx_rt4cuda11synchronizeENS0_6StreamE(cuda::Stream stream);
void __real__ZNK7lynx_rt4cuda5Graph6launchENS0_6StreamE(const cuda::Graph* graph, cuda::Stream stream);

void __wrap__ZN7lynx_rt4cuda11synchronizeENS0_6StreamE(cuda::Stream stream) {
  const double start = now_ms();
  __real__ZN7lynx_rt4cuda11synchronizeENS0_6StreamE(stream);
  seen.wait_ms += now_ms() - start;
}
void __wrap__ZNK7lynx_rt4cuda5Graph6launchENS0_6StreamE(const cuda::Graph* graph, cuda::Stream stream) {
  const double start = now_ms();
  if (graph_events) graph_events->begin.record(stream);
  __real__ZNK7lynx_rt4cuda5Graph6launchENS0_6StreamE(graph, stream);
  if (graph_events) graph_events->end.record(stream);
  seen.launch_ms += now_ms() - start;
  ++seen.graphs;
}
}

namespace {

constexpr int kTurn = 4, kWarmup = 4;  // steps of one policy before the next; untimed steps of each policy

struct Arguments {
  std::string model;  // a folder
  std::string name() const { return std::filesystem::path(model + "/").lexically_normal().parent_path().filename().string(); }
  std::vector<int> batches = {1, 8, 16, 32, 64};
  std::vector<std::string> selections = {"topk", "lynx", "oea:k0=2"};
  int steps = 64, context = 128;
  bool dependent_launch = true, quick = false;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) {
    // "lynx:alpha=8,beta=4" has a comma of its own
    const bool more = !parts.empty() && part.find('=') != std::string::npos && part.find(':') == std::string::npos;
    more ? parts.back() += "," + part : parts.emplace_back(part);
  }
  return parts;
}

struct Tally {
  std::vector<double> step, graph, outside, host, launch;  // ms
  int64_t bytes = 0, steps = 0, layer_steps = 0, layer_rows = 0, before = 0, active = 0;
  double mass = 0;
};

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  return values[size_t(std::lround(q * double(values.size() - 1)))];
}

// Queues `batch` sequences of random tokens and runs their prefill.
std::vector<uint64_t> start_sequences(Engine& engine, int batch, const Arguments& a, int64_t max_tokens) {
  const int64_t vocab = engine.model_info().vocab_size;
  SamplingParams params;
  params.temperature = 0;
  params.ignore_eos = true;
  params.max_tokens = int32_t(max_tokens);
  uint64_t random = 1;
  std::vector<uint64_t> ids;
  for (int i = 0; i < batch; ++i) {
    std::vector<int32_t> prompt;
    for (int t = 0; t < a.context; ++t) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      prompt.push_back(int32_t((random >> 33) % uint64_t(vocab)));
    }
    ids.push_back(engine.add_request(prompt, params));
  }
  std::set<uint64_t> waiting(ids.begin(), ids.end());
  while (!waiting.empty())
    for (const StepOutput& out : engine.step())
      if (!out.token_ids.empty()) waiting.erase(out.request_id);
  return ids;
}

void measure(const bench::Context& context, Engine& engine, int batch, const Arguments& a, int64_t max_tokens) {
  const std::vector<uint64_t> ids = start_sequences(engine, batch, a, max_tokens);
  for (const std::string& selection : a.selections) {
    engine.set_expert_selection(selection);
    for (int i = 0; i < kWarmup; ++i) engine.step();
  }
  std::vector<Tally> tallies(a.selections.size());
  graph_events.emplace();
  for (int done = 0; done < a.steps; done += kTurn)
    for (size_t s = 0; s < tallies.size(); ++s) {
      Tally& tally = tallies[s];
      engine.set_expert_selection(a.selections[s]);
      engine.reset_stats();
      for (int i = 0; i < kTurn; ++i) {
        seen = {};
        const double start = now_ms();
        engine.step();
        const double step = now_ms() - start;
        tally.step.push_back(step);
        tally.host.push_back(step - seen.wait_ms);
        if (seen.graphs != 1) continue;
        const double graph = double(cuda::Event::elapsed(graph_events->begin, graph_events->end));
        tally.graph.push_back(graph);
        tally.outside.push_back(step - graph);
        tally.launch.push_back(seen.launch_ms);
      }
      const EngineStats stats = engine.stats();
      if (stats.decode_rows != kTurn * batch)
        fail(ErrorCode::kInternal, "steps", "expected ", kTurn, " decode steps of ", batch, " rows, got ", stats.decode_rows,
             " rows");
      tally.bytes += stats.bytes_read;
      tally.steps += kTurn;
      for (const EngineStats::Layer& l : stats.layers) {
        tally.layer_steps += l.steps;
        tally.layer_rows += l.rows;
        tally.before += l.union_before;
        tally.active += l.active;
        tally.mass += l.retained_mass;
      }
    }
  graph_events.reset();
  for (const uint64_t id : ids) engine.abort(id);

  for (size_t s = 0; s < tallies.size(); ++s) {
    const Tally& t = tallies[s];
    const double bytes = double(t.bytes) / double(t.steps), step = quantile(t.step, 0.5);
    const double floor = bytes / context.read_gb_per_s / 1e6;
    const double layer_steps = double(std::max<int64_t>(t.layer_steps, 1));
    bench::Line line(context, "engine");
    line.add("model", a.name())
        .add("layers", engine.model_info().num_layers)
        .add("batch", batch)
        .add("selection", a.selections[s]);
    line.add("dependent_launch", a.dependent_launch).add("context", a.context).add("steps", t.steps);
    line.add("tpot_ms", step).add("p10_ms", quantile(t.step, 0.1)).add("p90_ms", quantile(t.step, 0.9));
    line.add("tokens_per_s", 1e3 * batch / step).add("bytes", bytes).add("gb_per_s", bytes / step / 1e6);
    line.add("floor_ms", floor).add("times_floor", step / floor);
    line.add("recorded_steps", int64_t(t.graph.size())).add("graph_ms", quantile(t.graph, 0.5));
    line.add("outside_graph_ms", quantile(t.outside, 0.5)).add("host_busy_ms", quantile(t.host, 0.5));
    line.add("graph_launch_ms", quantile(t.launch, 0.5));
    line.add("experts_before", double(t.before) / layer_steps).add("active", double(t.active) / layer_steps);
    line.add("retained_mass", t.mass / double(std::max<int64_t>(t.layer_rows, 1)));
  }
}

void run(const Arguments& a) {
  bench::Context context(a.quick);
  {
    bench::Context quick(true);
    bench::measure_ceilings(quick);
    context.read_gb_per_s = quick.read_gb_per_s;
  }
  const int most = *std::max_element(a.batches.begin(), a.batches.end());
  constexpr int64_t kRowsPerStep = 2048;
  // The oldest sequence generates tokens during the others' prefill, the warm-ups and the timed steps.
  const int64_t policies = int64_t(a.selections.size());
  const int64_t tokens =
      2 + most * a.context / (kRowsPerStep / 2) + policies * (kWarmup + (a.steps + kTurn - 1) / kTurn * kTurn) + 1;
  EngineOptions options;
  options.device = "cuda";
  options.dtype = "bfloat16";
  options.load_format = "dummy";
  options.max_num_seqs = most;
  options.max_num_batched_tokens = std::max<int64_t>(kRowsPerStep, most);
  options.max_model_len = a.context + tokens;
  options.enable_prefix_caching = false;
  options.disable_dependent_launch = !a.dependent_launch;
  const double start = now_ms();
  const auto engine = Engine::create(a.model, options);
  const ModelInfo info = engine->model_info();
  bench::Line(context, "engine_ready")
      .add("model", a.name())
      .add("seconds", (now_ms() - start) / 1e3)
      .add("weight_bytes", info.weight_bytes)
      .add("kv_bytes", info.kv_bytes)
      .add("workspace_bytes", info.workspace_bytes);
  for (const int batch : a.batches) measure(context, *engine, batch, a, tokens);
}

int usage() {
  std::cerr << "bench_engine MODEL_FOLDER [--batch 1,8,...] [--selection topk,lynx,...] [--steps N] [--context N]\n"
               "             [--no-dependent-launch] [--quick]\n";
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool value = i + 1 < argc;
    if (argument == "--quick") {
      a.quick = true;
    } else if (argument == "--no-dependent-launch") {
      a.dependent_launch = false;
    } else if (argument == "--batch" && value) {
      a.batches.clear();
      for (const std::string& part : split(argv[++i])) a.batches.push_back(std::max(1, std::atoi(part.c_str())));
    } else if (argument == "--selection" && value) {
      a.selections = split(argv[++i]);
    } else if (argument == "--steps" && value) {
      a.steps = std::max(1, std::atoi(argv[++i]));
    } else if (argument == "--context" && value) {
      a.context = std::max(1, std::atoi(argv[++i]));
    } else if (a.model.empty() && argument[0] != '-') {
      a.model = argument;
    } else {
      return usage();
    }
  }
  if (a.model.empty() || a.batches.empty() || a.selections.empty()) return usage();
  try {
    run(a);
  } catch (const Error& e) {
    std::cerr << "bench_engine: " << e.what() << "\n";
    return 1;
  }
  return 0;
}
