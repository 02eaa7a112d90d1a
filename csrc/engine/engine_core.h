// The engine without its lock: requests, and the parts of a step.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "engine/batch.h"
#include "engine/encoder_cache.h"
#include "engine/memory_plan.h"
#include "engine/memory_shares.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/selection_control.h"
#include "engine/state_cache.h"
#include "lynx_rt/engine.h"
#include "model/decoder.h"
#include "research/recording.h"

namespace lynx_rt {

// Thread-safety: none; Engine locks around every call.
class EngineCore {
 public:
  EngineCore(const std::string& path, const EngineOptions& options);

  uint64_t add(std::vector<int32_t> prompt, const SamplingParams& params, TokenMask token_mask = nullptr,
               std::vector<ImageInput> images = {});
  std::vector<StepOutput> step();
  bool abort(uint64_t id);
  // Takes back the last `num_tokens` generated tokens of a running request, of which at least one must be left. Later steps draw
  // them again: the same tokens, unless the token mask or the selection changes. Returns false, and does nothing, where the
  // request is not running or has too few.
  bool rollback(uint64_t id, int64_t num_tokens);
  bool has_unfinished() const { return scheduler_.num_running() + scheduler_.num_waiting() > 0; }
  int64_t num_preemptions() const { return scheduler_.num_preemptions(); }  // since creation
  void set_selection(const std::string& text) { selection_.set(text); }
  std::string selection() const { return selection_.text(); }
  EngineStats stats() const;
  ExpertCounts expert_counts() const;
  void reset_stats();
  ModelInfo model_info() const;
  // The tokens for which layers that keep all of a sequence have pages.
  int64_t num_kv_tokens() const { return plan_.num_blocks * options_.block_size; }
  void check_integrity() const {
    scheduler_.check_integrity();
    if (store_) store_->check_integrity();
    if (encoder_) encoder_->check_integrity(scheduler_.num_held_images());
    backend_->check_integrity();
  }
  std::vector<float> forward(const std::vector<int32_t>& token_ids, int64_t chunk, std::vector<ImageInput> images);
  RouterLogits take_router_logits();                                                             // engine_research.cc
  ExpertComparison compare_experts(const std::vector<int32_t>& token_ids, ExpertMetric metric);  // engine_research.cc

 private:
  std::unique_ptr<const ModelWeights> load_weights();
  void bind_expert_file(ModelWeights& weights);  // this and the next six: engine_experts.cc
  // On a device: divides its memory between experts and other weights as EngineOptions::expert_memory says, before these are placed.
  void tier_experts(const ModelWeights& weights);
  // Divides EngineOptions::memory, which is not empty. `weights`: those that are always in memory.
  // `low_bytes`: of copies of experts in low precision.
  void divide_memory(const ModelWeights& weights, int64_t low_bytes);
  Backend::MemoryBudget memory_budget() const;  // for everything but weights
  std::unique_ptr<ExpertStore> make_store();    // null where all experts are in memory
  std::unique_ptr<ExpertPrefetch> make_prefetch();
  std::unique_ptr<VirtualCache> make_virtual_cache();
  std::unique_ptr<EncoderCache> make_encoder();
  // Throws kCorruptFile once a file that weights are read from has been written to or truncated. Looks at the files only now and
  // then.
  void check_files();
  std::string limit_reason() const;  // why the model's context is no longer, for messages; "" where that is not the limit
  // Runs a sequence on pages of its own, under the model's own routing, `chunk` tokens at a time (0 = all at once). Calls
  // done(begin, count) after each chunk.
  void run_single(const std::vector<int32_t>& tokens, int64_t chunk, std::span<const RequestImage> images,
                  const MoeObserver& observe, const std::function<void(int64_t, int64_t)>& done);
  bool records_routed_experts() const { return options_.enable_return_routed_experts || options_.record_router_logits; }
  void record(const ScheduledStep& step, const BatchView& batch);  // engine_research.cc
  RoutedExperts take_routed_experts(Request& request);             // engine_research.cc
  // The token drawn for a sampled row.
  struct Drawn {
    Request* request;
    Sampler::Result result;
    std::string error;        // what went wrong for this request alone; empty = no error
    bool by_backend = false;  // the token is known only after the step
    bool has_mask = false;
  };
  // Runs the model on a step's rows and draws the next tokens. Throws RowError.
  std::vector<Drawn> run(const ScheduledStep& step);
  // engine_sample.cc
  std::vector<Drawn> use_logits(const ScheduledStep& step);
  bool fill_token_mask(const SampleRow& row, std::span<int32_t> words, std::string& error) const;
  void sample(std::span<SampleRow> rows, int64_t first_logits, std::span<Drawn> drawn, int32_t* tokens);
  void take_drawn_tokens(std::span<Drawn> drawn) const;
  float* host_logits(int64_t row);  // a row of logits_ in host memory, valid until the next call
  FinishReason finish_reason(const Request& request) const;
  StepOutput postprocess(Drawn drawn);       // may end the request
  StepOutput make_output(Request& request);  // what every output says
  void finish(const Request& request, FinishReason reason, StepOutput& output);
  std::vector<StepOutput> end_expired(double now);
  void forget_states(const ScheduledStep& step);
  void count_pages(EngineStats& stats) const;       // engine_report.cc
  void count_selection(const ScheduledStep& step);  // engine_report.cc
  struct BytesRead {
    int64_t all = 0, experts = 0, kv = 0;
  };
  BytesRead bytes_read() const;  // since reset_stats(); engine_report.cc

  // Order matters: later members point into earlier ones.
  EngineOptions options_;
  ModelConfig config_;
  Checkpoint checkpoint_;  // empty with dummy weights, and once the weights are on a device
  int64_t weight_bytes_ = 0, copied_weight_bytes_ = 0;
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<const ExpertFile> expert_file_;  // null: experts come from the checkpoint
  std::optional<MemoryShares> shares_;             // of EngineOptions::memory
  EncoderMemory encoder_memory_;                   // part of shares_, where these are given
  int64_t expert_memory_ = 0;                      // bytes for experts, where the others are read when they are needed
  bool tiered_ = false;                            // on a device: some experts lie in host memory
  std::shared_ptr<const LowExperts> low_experts_;  // of expert_policy; their bytes are part of expert_memory_
  std::optional<MappedFile> mapped_experts_;       // where all experts are in memory and come from the file
  std::unique_ptr<const ModelWeights> weights_;
  std::unique_ptr<ExpertStore> store_;
  std::unique_ptr<ExpertPrefetch> prefetch_;
  Decoder decoder_;
  std::unique_ptr<EncoderCache> encoder_;  // null where the model reads text alone, and on devices
  DeviceArray<float> logits_;              // [max logit rows, V]
  MemoryPlan plan_;                        // after the members that take memory, before those sized by what is left
  KvCache cache_;
  BlockPool pool_;
  WindowPages windows_;
  StateCache states_;
  Scheduler scheduler_;
  Batch batch_;
  Sampler sampler_;
  std::unique_ptr<VirtualCache> virtual_cache_;
  SelectionControl selection_;
  std::vector<float> host_logits_;     // [V] where the host cannot read logits_
  std::vector<DrawParams> draws_;      // for the rows of one logits() call
  std::vector<int32_t> token_masks_;   // for those of the rows that have one
  std::vector<int32_t> drawn_tokens_;  // for the sampled rows of a step
  std::vector<SelectionStats> layer_stats_;
  RoutedExpertsTable routed_experts_;
  std::vector<int32_t> routed_ids_;  // [rows, L, k] of the last step
  RouterLogits router_logits_;
  int64_t recorded_steps_ = 0;
  EngineStats counters_;
  ExpertCounts expert_counts_;  // without steps and rows, which counters_ has
  double files_checked_ = 0;    // time of the last check
  std::optional<Error> files_error_;
  int64_t preemptions_at_reset_ = 0;  // the scheduler's count at the last reset_stats()
  uint64_t next_id_ = 1;
};

}  // namespace lynx_rt
