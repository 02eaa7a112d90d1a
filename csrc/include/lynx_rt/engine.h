// The inference engine: token ids in, token ids out. Text lives in the Python package.
//
//   auto engine = lynx_rt::Engine::create("path/to/model", {});
//   uint64_t id = engine->add_request({1, 20, 21}, {});
//   while (engine->has_unfinished())
//     for (const lynx_rt::StepOutput& out : engine->step()) use(out.token_ids);
//
// Structs of this header may change with every version; lynx_rt.h is the stable interface.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lynx_rt/error.h"
#include "lynx_rt/export.h"
#include "lynx_rt/sampling_params.h"

namespace lynx_rt {

enum class LogLevel { kInfo, kWarning };

struct EngineOptions {
  // "auto": CUDA where this build and machine have it and the dtype is bfloat16, else the CPU; "cpu"; "cuda"; "cuda:N".
  std::string device = "auto";
  // "auto", "safetensors": the folder's checkpoint; "dummy": made-up weights, for measuring speed with a config.json alone.
  std::string load_format = "auto";
  std::string dtype = "auto";  // "auto" (the checkpoint's), "float32", "bfloat16", "float16"
  // What weights of 16 and 32 bits become when they are loaded: "none" (they stay), "int8" (linear layers and experts), "int4" (experts
  // and dense MLPs int4, attention and the output projection int8). Weights that the checkpoint holds quantised stay as they are where
  // products take their form, else they are decoded first; "dequantize" decodes all of them to 16 bit. CPU only: on a device they are
  // always decoded.
  std::string quantization = "none";
  // A folder where quantised and repacked weights are stored for the next run; "" = none. The file name depends on the sizes and times of
  // change of the checkpoint's files.
  std::string quantization_cache;
  // How activations enter products with weights that the checkpoint holds quantised and that stay as they are: "int8", with a scale per
  // 128 columns, and FP8 in `dtype`; "bfloat16": all in `dtype`, with the weights decoded in the cache, which is slower and gives the bits
  // of quantization="dequantize". CPU only.
  std::string activations = "int8";
  // A file of the model's experts that `lynx-rt pack` has made of the same checkpoint with the same `quantization`; "" = experts come from
  // the checkpoint; with expert_memory and quantization_cache the file is made in that folder, unless it is there. CPU only.
  std::string expert_file;
  // Memory for experts. On the CPU the others are read from expert_file when a step needs them; on a device this is memory of the device, and
  // the others lie in host memory, where kernels read them. Bytes ("8GB", "512MiB", "1000000"), a share
  // of all ("25%"), "auto" = half of what is free; "" or enough for all = all stay in memory. Prompts then get steps of their own.
  std::string expert_memory;
  // Memory for everything together: weights, the memory of a step, KV cache, experts; docs/tiers.md says how it is divided. Forms as
  // expert_memory has them, where a share is one of the free memory, and "auto" 80 % of it. "" = no such number. CPU only.
  std::string memory;
  // Policy by which experts stay in memory: "lfu:decay=0.99" (the most used ones), "score:decay=0.99" (those with the most gate mass),
  // "lru", "lfru", "random", "static:file=PATH" (a list that lynx-rt simulate --save-static writes), "none". Results do not depend on it,
  // but with copies in int4 of all experts, from which those that do not stay are computed, so that no step reads any: "lfu:miss=low", and
  // so on, with full=F and skip=S for those that are read or dropped all the same (docs/tiers.md), and "hi_lo:period=64,hysteresis=1.25,inflight=4", which exchanges experts every 64 steps alone. Requests with `exact` are refused
  // then.
  std::string expert_policy = "lfu";
  // Experts that are read before a layer is known to need them: "none"; "next_router:n=N" = the N that the next layer's router ranks first
  // on this layer's rows, as many as a token uses without N, in steps of at most 8 rows; "pregated" = what it ranks first is what the next
  // layer uses, which changes results and is for models that were trained so: requests with `exact` are refused. CPU only.
  std::string expert_prefetch = "none";
  // Seconds without an expert that arrives, after which a step ends its requests with an error and close() gives up reads that hang;
  // 0 = steps wait. Reads that take longer than 10 s are reported to on_log in any case.
  double io_timeout_s = 0;
  int64_t max_model_len = 0;              // tokens of prompt + output; 0 = the model's limit, cut to what the KV cache holds
  int64_t max_num_seqs = 128;             // running requests
  int64_t max_num_batched_tokens = 2048;  // rows of one step
  // Requests beyond max_num_seqs that may wait for one to end before add_request() refuses; 0 = no limit.
  int64_t max_num_queued_reqs = 0;
  // Prompt tokens of all requests that no step has taken up yet, above which add_request() refuses; 0 = no limit. A request of any
  // length may wait alone.
  int64_t max_num_queued_tokens = 0;
  // Choice of the waiting request that takes a free place: "first_come"; "affinity:window=128,skips=128,ms=0" = of the first `window`,
  // the one whose prompt is most like those that run, so that steps read fewer experts. A request is passed over at most `skips` times,
  // and not once it has waited for `ms` milliseconds (0 = no such limit). Greedy results without selection do not depend on it.
  std::string admission = "first_come";
  int64_t kv_cache_memory_bytes = 0;  // 0 = chosen from free memory and max_model_len
  int64_t block_size = 16;            // tokens per KV page
  // Memory for what the vision tower says of images, for requests that need it and later ones with the same images; an image that needs
  // more is refused. 0 = chosen: room for 16384 tokens of images, at most an eighth of the KV cache's memory together with
  // the tower's own.
  int64_t encoder_cache_memory_bytes = 0;
  // A model that reads images is loaded without its vision tower and reads text alone; other models are as they are.
  bool language_model_only = false;
  // Whether prompts share the pages of equal prefixes. Models with states of constant size keep snapshots of them, in at most as many
  // slots again as max_num_seqs, and cut prompts at the page boundaries where they take one.
  bool enable_prefix_caching = true;
  // Whether prefill chunks share steps with decode rows. A shared step reads the weights once for both. But batch-aware selection
  // acts in decode-only steps only; with false, prompts get steps of their own, and selection acts on every decode row.
  bool enable_mixed_chunk = true;
  // "topk", "lynx", "oea:k0=2", ...: the README lists the policies, their keys, and parts for single layers. "slo:tpot_ms=20"
  // strengthens a policy while steps take longer than that.
  std::string expert_selection = "topk";
  // For research: counts what a cache of so many experts of each layer would read (below 1 a share of them), while all stay in memory;
  // selections with the key `resident` see it. 0 = none. CPU only. virtual_residency is the policy by which it keeps experts.
  double virtual_residents = 0;
  std::string virtual_residency = "lfu";
  int num_threads = 0;  // 0 = one per core, within the affinity and the CPU quota of the process
  std::string isa;      // "" = best; "scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amxbf16"
  uint64_t seed = 0;    // for requests without a seed
  bool disable_dependent_launch = false;      // cuda: kernels of a step do not overlap; results are the same
  bool enable_return_routed_experts = false;  // StepOutput::routed_experts
  bool record_router_logits = false;          // for take_router_logits(); call it regularly, since records pile up
  // Called from create() as weights are copied to a device or quantised; done and total in bytes. Not called where the CPU reads
  // them in place. An exception from it ends create().
  std::function<void(int64_t done, int64_t total)> on_load_progress;
  // Receives one line about what was loaded, and warnings: a context cut to the cache, preemption, requests that end with an
  // error. Called without a lock held, in the thread whose call leads to it; see step() for what it may call. Only the warning of a read of
  // experts that hangs comes in the middle of a step, so that it must not call the engine then.
  std::function<void(LogLevel level, const std::string& text)> on_log;
};

struct TokenLogprob {
  int32_t token_id;
  float logprob;  // natural log, of the model's distribution before penalties and temperature
  int32_t rank;   // 1 = most likely
};
using TokenLogprobs = std::vector<TokenLogprob>;  // the token itself first, then the most likely ones in order

// The experts with which positions of a sequence were computed, after selection.
struct RoutedExperts {
  int64_t num_rows = 0, num_layers = 0, num_experts_per_tok = 0;
  std::vector<int16_t> ids;  // [rows, MoE layers, k], best first; -1 = none
};

enum class FinishReason { kNone, kStop, kLength, kError, kTimeout };

// What one step did for one request.
struct StepOutput {
  uint64_t request_id = 0;
  std::vector<int32_t> token_ids;              // new tokens; a stop token is included, the text layer hides it
  std::vector<TokenLogprobs> logprobs;         // one per new token, where requested
  std::vector<TokenLogprobs> prompt_logprobs;  // all at once when the prompt is done; entry 0 is empty
  // Experts of the positions computed since the request's last output, including positions of the prompt and of the prefix cache.
  // They start at position 0 again once num_preemptions has grown. The last token of a sequence is never computed.
  RoutedExperts routed_experts;
  FinishReason finish_reason = FinishReason::kNone;
  int32_t stop_token_id = -1;     // the token that ended the request; -1 = none
  std::string error;              // why the request ended with kError or kTimeout; other requests go on
  int64_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache
  int64_t num_preemptions = 0;
  int64_t num_computed_prompt_tokens = 0;  // cached ones included; falls where a preempted request starts again
  // So far: the request's rows to which the engine's selection was applied, and the decode-only steps that it had rows in, with the
  // experts that these steps read for all of their rows, summed over MoE layers. Rows of a failed step do not count.
  int64_t num_selected_rows = 0, num_decode_steps = 0, num_experts_read = 0;
  double scheduler_time = 0;  // seconds that choosing the rows took in the steps that had rows of the request
  // Seconds on the steady clock; 0 = not yet.
  double arrival_time = 0, first_scheduled_time = 0, first_token_time = 0, finish_time = 0;
};

// Decides which tokens may follow `tokens` (a request's prompt and generated tokens): sets their bits in `words`, of which all are
// zero before, or returns false where every token may follow. Token v is bit v % 32 of word v / 32, as for xgrammar and
// llguidance; bits beyond the vocabulary are ignored. It is called once for each row that a token is drawn from, in the step and
// under the engine's lock, so it must not call the engine. A failed step is run again, so the answer must depend on `tokens`
// alone. Throwing, or a mask without tokens, ends this request with an error, and no other.
using TokenMask = std::function<bool(std::span<const int32_t> tokens, std::span<int32_t> words)>;

// An image of a prompt. M = merge_size, C = in_channels * temporal_patch_size * patch_size^2 of the model's vision_config.
struct ImageInput {
  // Index of the first of the image's grid_height * grid_width / M^2 tokens in the prompt, all of which are ModelInfo::image_token_id.
  int64_t position = 0;
  int32_t grid_height = 0, grid_width = 0;  // patches; multiples of M
  // [grid_height * grid_width, C], finite; rows in the order of merge blocks: block row, block column, row in the block, column in the block.
  std::vector<float> patches;
  // Names the content, for the caches: images with equal digests and grids count as equal. Not empty; a SHA-256 of the patches, say.
  std::string digest;
};

// Counters since creation or reset_stats(), and gauges.
struct EngineStats {
  int64_t num_running = 0, num_waiting = 0, kv_blocks_used = 0, kv_blocks_total = 0;  // gauges; in pages of all layers
  int64_t num_waiting_tokens = 0;  // gauge: prompt tokens of the waiting requests
  int64_t steps = 0, decode_steps = 0, prompt_tokens = 0, cached_prompt_tokens = 0, generation_tokens = 0;
  int64_t preemptions = 0, finished = 0, aborted = 0;
  double step_seconds = 0, decode_seconds = 0, model_seconds = 0, sampling_seconds = 0;
  int64_t decode_rows = 0;  // rows of decode-only steps
  // The first two are among decode_rows: rows to which the engine's selection was applied, and rows of requests with
  // SamplingParams::exact. The last counts decode rows of steps that computed prompts too.
  int64_t decode_rows_selected = 0, decode_rows_exact = 0, decode_rows_mixed = 0;
  int64_t bytes_read = 0;  // weights and KV that the steps had to read: the sum of the next three
  int64_t bytes_read_experts = 0, bytes_read_dense = 0, bytes_read_kv = 0;  // dense: all other weights
  struct Layer {                                                            // decode-only steps, one entry per MoE layer in order
    int64_t layer = 0, steps = 0, rows = 0, union_before = 0, active = 0, remapped_pairs = 0, guard_hits = 0;
    double retained_mass = 0;  // summed over rows; divide by rows
    int64_t changed_rows = 0;  // rows that did not get the experts of the model's own routing
    // Experts that were not resident: of the model's own routing, and of those that were read. 0 where all experts are in memory.
    int64_t misses_before = 0, misses = 0;
  };
  std::vector<Layer> layers;
  struct Op {
    std::string name;
    int64_t calls = 0;
    double seconds = 0;
    int64_t bytes = 0;
  };
  std::vector<Op> ops;
  struct Slo {                  // expert selection "slo:..."; no levels otherwise
    double target_seconds = 0;  // target time of a decode-only step
    // The measured cost model of a step, experts, and those that came from the disk, summed over layers.
    double fixed_seconds = 0, seconds_per_expert = 0, seconds_per_miss = 0;
    int64_t steps_over_target = 0;
    int64_t level = 0;                                    // the current one
    std::vector<std::pair<std::string, int64_t>> levels;  // selection of each level, and decode-only steps under it
  } slo;
  // Counters of reads where not all experts are in memory (EngineOptions::expert_memory): slots is the number of those that there is
  // memory for; 0 = all.
  struct Tier {
    int64_t slots = 0, slot_bytes = 0, resident = 0;                   // gauges
    int64_t hits = 0, misses = 0, decode_hits = 0, decode_misses = 0;  // experts of a layer and step: in memory, read
    int64_t prefetched = 0, prefetch_used = 0;  // experts whose reads expert_prefetch began, and those that were needed
    int64_t bytes_read = 0, failed_reads = 0;
    double wait_seconds = 0, read_seconds = 0;  // steps waited for reads and had nothing to compute; reads were under way
    double read_rate = 0;                       // gauge: bytes per second of the time of reads, lately; 0 = nothing was read yet
    int64_t read_depth = 0;                     // gauge: pieces of 1 MiB that are read at a time, by a measurement at the start
    // With copies in low precision (expert_policy), from which misses are computed: their bytes, a gauge. Then, and on a device: hits that had
    // not arrived when a step needed them.
    int64_t low_bytes = 0, late = 0;
  } tier;
  // Images of the prompts counted by prompt_tokens; images that the vision tower was run for; images that a request needed and that were
  // in the encoder cache. An image whose pages are in the prefix cache is neither of the last two.
  int64_t images = 0, images_encoded = 0, images_cached = 0;
  double encoder_seconds = 0;       // time of the tower, part of step_seconds and not of decode_seconds
  int64_t encoder_cache_bytes = 0;  // gauge
};

// Decode-only steps in which each expert was used, [MoE layers, num_experts], since creation or reset_stats(). The lists are empty on
// devices other than the CPU, which keep the routing to themselves.
struct ExpertCounts {
  int64_t steps = 0, rows = 0;  // decode-only steps, and their rows
  std::vector<int64_t> wanted;  // steps in which the model's own routing of some row chose it
  std::vector<int64_t> read;    // steps in which it was read
};

// Router logits of decode-only steps (N rows, L MoE layers, E experts, k per token), and what is needed to route the rows again,
// isolation groups aside.
struct RouterLogits {
  int64_t num_model_layers = 0, num_experts = 0, num_experts_per_tok = 0;
  bool norm_topk_prob = false;
  std::string router_kind = "softmax";  // or "sigmoid", "sparsemixer"; it and the next fields say how logits rank experts
  int32_t num_groups = 1, top_groups = 1;
  bool group_top2 = false;
  std::vector<float> choice_bias;  // [L, E] or empty: added to gates when experts are chosen
  std::vector<int32_t> layers;     // [L] numbers of the MoE layers among all layers
  std::vector<float> scores;       // [N, L, E]
  // [N, L - 1, E]: what the routers from the second MoE layer on say of the residual stream after the attention of the MoE layer before,
  // the guess by which expert_prefetch=next_router reads ahead. Empty on devices.
  std::vector<float> next_scores;
  std::vector<int16_t> routed_experts;  // [N, L, k] like RoutedExperts::ids
  std::vector<int64_t> step;            // [N] rising, counted from the engine's first decode-only step
  std::vector<uint64_t> request;        // [N] number of the request
  std::vector<int32_t> position;        // [N] position in the sequence
  std::vector<int32_t> token;           // [N] id of the token there
  std::vector<uint8_t> exact;           // [N] SamplingParams::exact
  // The prompts of the requests above, one after the other, each from its first decode-only step on: [P] number of the request, and id
  // of the token.
  std::vector<uint64_t> prompt_request;
  std::vector<int32_t> prompt_token;
};

// The measure by which the outputs of two experts (without gate weights) for the same layer input are compared.
enum class ExpertMetric { kFrobenius, kCosine };

// Comparison of all experts of each layer on the same tokens; L MoE layers, E experts.
struct ExpertComparison {
  int64_t num_tokens = 0, num_layers = 0, num_experts = 0;
  // [L, E, E] sums over tokens. kFrobenius: squared distances of the two outputs. kCosine: their cosines (0 where one output is
  // zero, 1 for an expert with itself).
  std::vector<double> sums;
  std::vector<int64_t> usage;  // [L, E] tokens that the model's own routing sends to the expert
};

struct ModelInfo {
  std::string model_type, dtype, device;
  int64_t hidden_size = 0, num_layers = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, vocab_size = 0;
  int64_t num_experts = 0, num_experts_per_tok = 0, moe_intermediate_size = 0, num_moe_layers = 0;
  int64_t max_model_len = 0, weight_bytes = 0, kv_bytes = 0, kv_bytes_per_token = 0, workspace_bytes = 0;
  std::vector<int32_t> eos_token_ids;
  int64_t max_position_embeddings = 0;  // the model's own limit on max_model_len
  std::vector<std::string>
      warnings;  // where the checkpoint contradicts its config.json, and where the context or max_num_seqs was cut
  // Bytes of the weights that cannot be used in place in the file: they were decoded, converted or transposed to separate memory.
  // That memory is given back where they were then quantised or copied to a device.
  int64_t copied_weight_bytes = 0;
  // Bytes of the weights that lie in mapped files: the checkpoint's, and that of quantization_cache. The other ones take memory of
  // their own (on a device, all of them).
  int64_t mapped_weight_bytes = 0;
  // The token that stands for a row of an image; -1 = the model, or this checkpoint of it, reads text alone. Then keys of vision_config, 0
  // where it reads text alone.
  int32_t image_token_id = -1;
  int64_t patch_size = 0, temporal_patch_size = 0, merge_size = 0;
};

// Thread-safety: every method may be called from any thread; one lock serialises them. A failed add_request() or step()
// leaves the engine and its other requests as they were.
// fork(): the child may only close and destroy an engine that was made before the fork, which frees nothing; every other call
// throws kClosed. An engine made in the child works, and the parent's engine is not disturbed.
class LYNX_RT_API Engine {
 public:
  // `path`: a Hugging Face model folder. Throws Error (kNotFound, kCorruptFile, kUnsupported, kOutOfMemory,
  // kInvalidArgument), each naming what was wrong.
  static std::unique_ptr<Engine> create(const std::string& path, const EngineOptions& options);
  ~Engine();

  // Queues a request and returns its number. Throws kInvalidArgument (empty prompt, id outside the vocabulary, prompt not
  // shorter than max_model_len, a sampling field out of range), kQueueFull, kClosed. token_mask: null = every token may follow;
  // with forced_token_ids it is not asked. images: in the order of their positions; every image_token_id of the prompt is in one of them.
  // Throws kInvalidArgument (field images) where an image does not fit the prompt or the encoder cache, kUnsupported where the model reads
  // text alone.
  uint64_t add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params, TokenMask token_mask = nullptr,
                       std::vector<ImageInput> images = {});
  // Runs one step: schedule -> run -> postprocess. Returns no outputs when there is nothing to do. Steps of several threads take
  // turns.
  std::vector<StepOutput> step();
  // Runs one step and delivers its outputs one at a time, without a lock held. on_output may call everything except step(), which
  // throws kInvalidArgument there, and the destructor. Where on_output throws, step() throws the same: that output counts as
  // delivered, and the next step() delivers the outputs after it, without running a step of its own.
  void step(const std::function<void(const StepOutput&)>& on_output);
  // Returns whether this thread is inside step(on_output), where the engine must not be destroyed.
  bool in_step() const;
  // Ends a request and frees its pages. Returns false where the request is unknown or aborted, or its last output has been
  // delivered. After it returns, no on_output for the request runs or begins in another thread: outputs that a step(on_output)
  // there has ready are dropped, including the last one, and a delivery in progress there is waited for. So on_output must not
  // wait for this call, nor for a lock that is held around it.
  bool abort(uint64_t request_id);
  bool has_unfinished() const;  // requests wait or run, or have outputs not yet delivered

  // Waits until has_unfinished(), wake() or timeout_ms have passed (negative = no limit); returns has_unfinished(). Throws kClosed,
  // also where close() ends the wait.
  bool wait_for_work(int64_t timeout_ms = -1);
  void wake();  // ends every wait in progress; where there is none, the next wait ends at once

  // Sets the selection from the next step on. Throws kInvalidArgument for an unknown policy or key, or k0 > k.
  void set_expert_selection(const std::string& selection);
  std::string expert_selection() const;

  // Times on the steady clock in seconds, 0 = none: the end of the last step that did not fail, and the start of the step in progress.
  // They wait for no lock, so that a watchdog can ask while a step hangs.
  double last_step_time() const;
  double step_start_time() const;

  EngineStats stats() const;
  ExpertCounts expert_counts() const;
  void reset_stats();
  ModelInfo model_info() const;
  // Verifies page reference counts, the free list, the prefix cache and who owns memory for experts; throws kInternal saying what is
  // inconsistent.
  void check_integrity() const;

  // Returns the logits [tokens, vocabulary] of every position of one sequence, computed outside of scheduling, for tests and
  // research. `chunk` is the number of rows per pass, 0 = all at once; the result is bitwise the same for all values.
  std::vector<float> forward(const std::vector<int32_t>& token_ids, int64_t chunk = 0, std::vector<ImageInput> images = {});

  // Returns the router logits of the decode-only steps since the last call. Throws kInvalidArgument without record_router_logits.
  RouterLogits take_router_logits();
  // Runs every expert on every token of one sequence, under the model's own routing and outside of scheduling; for calibration.
  // Throws kUnsupported on a device other than the CPU, and for a model without experts.
  ExpertComparison compare_experts(const std::vector<int32_t>& token_ids, ExpertMetric metric);

  void close();  // frees everything and ends waits; later calls throw kClosed. Idempotent.

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lynx_rt
