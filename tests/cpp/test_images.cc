// Tests csrc/engine/request_image.h: rotary positions and page keys; and the scheduler with images, by a tower that is made up.
#include <array>
#include <map>
#include <set>
#include <string>

#include "check.h"
#include "engine/batch.h"
#include "engine/encoder_cache.h"
#include "scheduler_world.h"

using namespace lynx_rt;
using namespace scheduler_world;

namespace {

constexpr int32_t kPlaceholder = 9;
using Rows = std::vector<std::vector<int64_t>>;

ModelConfig config() {
  ModelConfig m;
  m.model_type = "made up";
  m.image_token_id = kPlaceholder;
  VisionConfig v;
  v.in_channels = v.temporal_patch_size = v.patch_size = 1;
  v.merge_size = 2;
  m.vision = v;
  return m;
}

ImageInput image_at(int64_t position, int32_t height, int32_t width, const std::string& digest = "digest") {
  return {position, height, width, std::vector<float>(size_t(height * width), 1.0f), digest};
}

void test_rope_positions() {
  // Two tokens of text, a grid of 4 x 6 patches (2 x 3 tokens), one of text, a grid of 6 x 2, one of text.
  Ids prompt = {1, 2};
  prompt.insert(prompt.end(), 6, kPlaceholder);
  prompt.push_back(3);
  prompt.insert(prompt.end(), 3, kPlaceholder);
  prompt.push_back(4);
  std::vector<RequestImage> images = check_images(config(), true, prompt, {image_at(2, 4, 6), image_at(9, 6, 2)});
  CHECK_EQ(images.size(), 2u);
  CHECK_EQ(images[0].first_rope_position, 2);
  CHECK_EQ(images[0].next_rope_position, 5);
  CHECK_EQ(images[1].first_rope_position, 6);
  CHECK_EQ(images[1].next_rope_position, 9);

  const std::vector<float> outputs(100);
  for (RequestImage& image : images) image.output = outputs.data();
  constexpr int64_t kFirst = 1000, kColumns = 7;
  Batch batch(kFirst, kColumns);
  const Ids blocks = {0};
  BatchView view = batch.build_single(prompt, 0, blocks, 16, images);
  const std::vector<int32_t> rope(view.rope_rows, view.rope_rows + view.num_rows);
  CHECK_EQ(rope, (Ids{0, 1, 1000, 1001, 1002, 1003, 1004, 1005, 5, 1006, 1007, 1008, 9}));
  const std::vector<std::array<int32_t, 3>> want = {{2, 2, 2}, {2, 2, 3}, {2, 2, 4}, {2, 3, 2}, {2, 3, 3},
                                                    {2, 3, 4}, {6, 6, 6}, {6, 7, 6}, {6, 8, 6}};
  CHECK(batch.image_rows().positions == want);
  CHECK_EQ(batch.image_rows().runs.size(), 2u);
  CHECK_EQ(batch.image_rows().runs[1].first_row, 9);

  // A chunk that begins and ends within images.
  view = batch.build_single(std::span(prompt).subspan(5, 5), 5, blocks, 16, images);
  CHECK_EQ(std::vector<int32_t>(view.rope_rows, view.rope_rows + 5), (Ids{1000, 1001, 1002, 5, 1003}));
  CHECK_EQ(batch.image_rows().runs.size(), 2u);
  CHECK(batch.image_rows().runs[0].output == outputs.data() + 3 * kColumns);
  CHECK_EQ(batch.image_rows().runs[0].num_rows, 3);
  CHECK_EQ(batch.image_rows().runs[1].first_row, 4);
  CHECK((batch.image_rows().positions[3] == std::array<int32_t, 3>{6, 6, 6}));
  // Rows after the prompt, and rows without images.
  const Ids more = {1, 1};
  view = batch.build_single(more, 13, blocks, 16, images);
  CHECK_EQ(std::vector<int32_t>(view.rope_rows, view.rope_rows + 2), (Ids{10, 11}));
  CHECK(batch.image_rows().runs.empty());
  CHECK(batch.build_single(more, 0, blocks, 16).rope_rows == nullptr);
}

void test_words_of_pages() {
  Ids prompt = {1, 2};
  prompt.insert(prompt.end(), 6, kPlaceholder);
  prompt.insert(prompt.end(), 4, 3);
  const auto of = [&](int64_t position, const std::string& digest) {
    Ids ids(size_t(position), 1);
    ids.insert(ids.end(), 6, kPlaceholder);
    ids.insert(ids.end(), 6, 3);
    return check_images(config(), true, ids, {image_at(position, 4, 6, digest)});
  };
  const std::vector<RequestImage> a = of(2, "a"), b = of(2, "b"), shifted = of(3, "a");
  CHECK(image_words(a, 0, 2).empty());
  CHECK(image_words(a, 8, 4).empty());
  CHECK(!image_words(a, 0, 4).empty());
  CHECK(image_words(a, 0, 4) != image_words(b, 0, 4));
  CHECK(image_words(a, 4, 4) != image_words(a, 0, 4));        // another part of it
  CHECK(image_words(a, 4, 4) != image_words(shifted, 4, 4));  // also where the tokens are equal
  CHECK(image_words(a, 4, 4) == image_words(of(2, "a"), 4, 4));
}

void test_words_are_no_salt() {
  BlockPool pool(8, 2, true);
  Ids block;
  CHECK(pool.allocate(1, block));
  const Ids tokens = {1, 2}, words = {97, 98};
  const auto none = [](int64_t, int64_t) { return Ids(); };
  const auto same = [&](int64_t, int64_t) { return words; };
  pool.register_block(block[0], kNoContent, tokens, "c", words);
  CHECK(pool.match_prefix(tokens, 1, "c").blocks.empty());
  CHECK(pool.match_prefix(tokens, 1, "c", none).blocks.empty());
  CHECK(pool.match_prefix(tokens, 1, "abc", none).blocks.empty());
  CHECK(pool.match_prefix(tokens, 1, "", same).blocks.empty());
  const BlockPool::Match match = pool.match_prefix(tokens, 1, "c", same);
  CHECK_EQ(match.blocks, block);
}

// Outputs that are there after some calls of acquire(), as many at a time as there is room for.
class MadeOutputs final : public ImageOutputs {
 public:
  MadeOutputs(int64_t room, int64_t delay) : room_(room), delay_(delay) {}
  void begin_step(bool decoding) override { decoding_ = decoding; }
  bool acquire(RequestImage& image) override {
    if (image.output) return true;
    if (int64_t(held_.size()) == room_) return false;
    if (decoding_ && delayed_[&image]++ < delay_) return false;
    image.output = &value_;
    held_.insert(&image);
    return true;
  }
  void release(RequestImage& image) override {
    if (image.output) CHECK_EQ(held_.erase(&image), 1u);
    image.output = nullptr;
  }
  int64_t num_held() const { return int64_t(held_.size()); }

 private:
  int64_t room_, delay_;
  bool decoding_ = false;
  float value_ = 0;
  std::set<const RequestImage*> held_;
  std::map<const RequestImage*, int64_t> delayed_;
};

std::unique_ptr<Request> with_images(uint64_t id,
                                     const std::vector<int>& parts) {  // text tokens, image of so many tokens, text, ..
  Ids prompt;
  std::vector<ImageInput> images;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i % 2) images.push_back(image_at(int64_t(prompt.size()), 2, 2 * parts[i], std::to_string(id) + "/" + std::to_string(i)));
    prompt.insert(prompt.end(), size_t(parts[i]), i % 2 ? kPlaceholder : 1);
  }
  auto checked = check_images(config(), true, prompt, std::move(images));
  auto r = make_request(id, prompt);
  r->images = std::move(checked);
  return r;
}

void test_rows_end_before_an_image() {
  const auto backend = cpu();
  BlockPool pool(64, 4, true);
  StateCache states(*backend, {}, 0);
  WindowPages windows = no_windows();
  MadeOutputs outputs(4, 2);
  Scheduler scheduler(pool, windows, states, 8, 64, true, {}, &outputs);
  scheduler.add(make_request(1, {1, 2, 3}));
  ScheduledStep step = scheduler.schedule();
  scheduler.advance(*step.requests[0].request, 3, true);
  scheduler.find_running(1)->tokens.push_back(5);
  scheduler.add(with_images(2, {3, 5, 2}));
  scheduler.add(with_images(3, {0, 5, 2}));
  scheduler.add(make_request(4, {1, 2}));
  // The tower lags by two calls beside the first request: text before an image, and requests without images, go on.
  const auto rows = [&] {
    std::vector<std::vector<int64_t>> out;
    for (const ScheduledRequest& s : step.requests) out.push_back({int64_t(s.request->id), s.num_tokens});
    return out;
  };
  const auto next = [&] {
    step = scheduler.schedule();
    const auto out = rows();
    for (const ScheduledRequest& s : step.requests) {
      scheduler.advance(*s.request, s.num_tokens, true);
      if (s.request->num_pending() == 0) s.request->tokens.push_back(5);
    }
    CHECK_EQ(outputs.num_held(), scheduler.num_held_images());
    scheduler.check_integrity();
    return out;
  };
  CHECK(next() == (Rows{{1, 1}, {2, 3}, {4, 2}}));
  CHECK_EQ(scheduler.num_running(), 4);
  CHECK(next() == (Rows{{1, 1}, {4, 1}}));
  CHECK(next() == (Rows{{1, 1}, {4, 1}, {2, 7}, {3, 7}}));
  CHECK_EQ(outputs.num_held(), 0);
  for (const uint64_t id : {1, 2, 3, 4}) CHECK(scheduler.remove(id) != nullptr);
}

// Few pages and little room for images: requests that wait for each other's give way, and all come to an end.
void test_random_lives() {
  std::mt19937 random(5);
  const auto below = [&](int n) { return int(random() % unsigned(n)); };
  int64_t preemptions = 0;
  for (int life = 0; life < 200; ++life) {
    const auto backend = cpu();
    BlockPool pool(10, 4, below(2) > 0);
    StateCache states(*backend, {}, 0);
    WindowPages windows = no_windows();
    MadeOutputs outputs(1 + below(2), below(3));
    Scheduler scheduler(pool, windows, states, 4, 4 + below(20), below(2) > 0, {}, &outputs);
    const int count = 6;
    for (uint64_t id = 1; id <= count; ++id)
      scheduler.add(with_images(id, {below(6), 1 + below(8), 1 + below(4), 1 + below(8), 1 + below(3)}));
    int finished = 0, steps = 0;
    while (finished < count && steps < 2000) {
      ++steps;
      const ScheduledStep step = scheduler.schedule();
      for (const ScheduledRequest& s : step.requests) {
        Request& r = *s.request;
        CHECK(s.num_tokens > 0);
        for (const RequestImage& image : r.images)
          if (image.position < r.num_computed + s.num_tokens && image.end() > r.num_computed) CHECK(image.output != nullptr);
        scheduler.advance(r, s.num_tokens, true);
        if (r.num_pending() > 0) continue;
        r.tokens.push_back(5);
        if (r.num_generated() > 6) scheduler.remove(r.id), ++finished;
      }
      CHECK_EQ(outputs.num_held(), scheduler.num_held_images());
      scheduler.check_integrity();
    }
    CHECK_EQ(finished, count);
    CHECK_EQ(outputs.num_held(), 0);
    preemptions += scheduler.num_preemptions();
  }
  CHECK(preemptions > 0);
}

void test_memory() {
  ModelConfig m = config();
  m.max_position_embeddings = 4096;
  VisionConfig& v = *m.vision;
  v.hidden_size = 32, v.num_heads = 2, v.out_hidden_size = 16, v.deepstack = {0};
  const int64_t per_token = 2 * 16 * 4;
  EngineOptions options;
  const auto backend = make_backend({"cpu", DType::kF32, 1, ""});
  const EncoderMemory large = encoder_memory(m, *backend, options, int64_t(1) << 40);
  CHECK_EQ(large.max_tokens, 4096);  // no prompt has more
  CHECK_EQ(large.outputs, 4096 * per_token);
  CHECK_EQ(large.tower, VisionTower::bytes(v, *backend, 4 * 4096));
  const EncoderMemory small = encoder_memory(m, *backend, options, 1 << 20);
  CHECK(small.all() <= (1 << 20) / 8 && small.all() > (1 << 20) / 10);
  CHECK_EQ(small.outputs, small.max_tokens * per_token);
  options.encoder_cache_memory_bytes = 10 * per_token + 5;
  const EncoderMemory given = encoder_memory(m, *backend, options, 0);
  CHECK_EQ(given.outputs, 10 * per_token + 5);
  CHECK_EQ(given.max_tokens, 10);
  m.vision.reset();
  CHECK_EQ(encoder_memory(m, *backend, options, 1 << 20).all(), 0);
}

}  // namespace

int main() {
  test_rope_positions();
  test_words_of_pages();
  test_words_are_no_salt();
  test_rows_end_before_an_image();
  test_random_lives();
  test_memory();
  return check::result("test_images");
}
