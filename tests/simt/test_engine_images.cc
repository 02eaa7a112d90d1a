// Part of test_engine: the vision tower, and images in requests.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "engine_case.h"

using namespace lynx_rt;
using namespace engine_case;

namespace {

constexpr int64_t kPatchColumns = 3 * 2 * 4 * 4;

struct Picture {
  int32_t grid_height, grid_width;
  int number;
  int64_t num_tokens() const { return int64_t(grid_height) * grid_width / 4; }
};

ImageInput image_of(const Picture& picture, int64_t position) {
  ImageInput image;
  image.position = position;
  image.grid_height = picture.grid_height;
  image.grid_width = picture.grid_width;
  for (int64_t i = 0; i < kPatchColumns * picture.grid_height * picture.grid_width; ++i)
    image.patches.push_back(std::sin(0.37f * float(i % 1009) * float(picture.number + 1) + float(i / 1009)));
  image.digest = str_cat("picture ", picture.number);
  return image;
}

struct Question {
  std::vector<int32_t> prompt;
  std::vector<ImageInput> images;
  SamplingParams params;
};

// Text, the pictures with a token between them, text.
Question question(const ModelInfo& info, const std::vector<Picture>& pictures, int number) {
  Question q;
  q.prompt = prompt(number, 100, 3);
  for (const Picture& picture : pictures) {
    q.images.push_back(image_of(picture, int64_t(q.prompt.size())));
    q.prompt.insert(q.prompt.end(), size_t(picture.num_tokens()), info.image_token_id);
    q.prompt.push_back(7);
  }
  const auto rest = prompt(number + 50, 100, 5);
  q.prompt.insert(q.prompt.end(), rest.begin(), rest.end());
  q.params = greedy(6);
  q.params.logprobs = 0;
  return q;
}

std::vector<Answer> answer(Engine& engine, const std::vector<Question>& questions) {
  std::vector<uint64_t> ids;
  for (const Question& q : questions) ids.push_back(engine.add_request(q.prompt, q.params, nullptr, q.images));
  return answers_of(engine, ids);
}

EngineOptions options_of(const std::string& device, const std::string& dtype = "bfloat16") {
  EngineOptions o = options(device, dtype);
  o.max_model_len = 640;
  o.max_num_batched_tokens = 96;
  return o;
}

}  // namespace

// The tower's outputs and the rows made of them are as close to float32 as the CPU's bfloat16 is, in the median over the tokens of
// prompts; and an answer has the same bits alone, in a batch, in other chunks, beside an expert tier, and from the encoder cache.
void engine_case::test_images(const std::string& folder) {
  model = folder;
  load_format = "dummy";
  EngineOptions o = options_of("cuda");
  auto cuda = Engine::create(model, o), cpu = Engine::create(model, options_of("cpu")),
       exact = Engine::create(model, options_of("cpu", "float32"));
  const ModelInfo info = cuda->model_info();
  // The last has more rows than the tower's products take at a time, and more than a step of the decoder has.
  const Picture small{2, 6, 0}, wide{4, 14, 1}, tall{10, 4, 2}, large{34, 32, 3};
  const std::vector<Question> questions = {question(info, {small}, 0), question(info, {wide, tall}, 1), question(info, {}, 2),
                                           question(info, {large}, 3)};

  const std::vector<Answer> together = answer(*cuda, questions);
  CHECK_EQ(cuda->stats().images_encoded, 4);
  std::vector<Question> asked = questions;
  for (Question& q : asked) q.params.prompt_logprobs = 0;
  const std::vector<Answer> mine = answer(*cuda, asked), theirs = answer(*cpu, asked), want = answer(*exact, asked);
  std::vector<double> ours, others;
  for (size_t i = 0; i < asked.size(); ++i) {
    CHECK_EQ(want[i].prompt_logprobs.size(), asked[i].prompt.size() - 1);
    for (size_t t = 0; t < want[i].prompt_logprobs.size(); ++t) {
      ours.push_back(std::abs(double(mine[i].prompt_logprobs[t]) - want[i].prompt_logprobs[t]));
      others.push_back(std::abs(double(theirs[i].prompt_logprobs[t]) - want[i].prompt_logprobs[t]));
    }
  }
  std::sort(ours.begin(), ours.end());
  std::sort(others.begin(), others.end());
  const double error = ours[ours.size() / 2], other = others[others.size() / 2];
  std::cerr << "images: median error of a log probability: cuda " << error << ", cpu " << other << "\n";
  CHECK(error > 0 && error <= 1.25 * other);
  CHECK_EQ(cuda->stats().images_encoded, 4);  // each of them once

  // Another picture of the same size changes the answer.
  const Answer changed = answer(*cuda, {question(info, {{2, 6, 9}}, 0)})[0];
  CHECK(changed.logprobs != together[0].logprobs);

  CHECK(answer(*cuda, {questions[1]})[0] == together[1]);
  o.max_num_batched_tokens = 19;
  o.block_size = 5;
  o.enable_prefix_caching = true;
  auto chunks = Engine::create(model, o);
  CHECK(answer(*chunks, questions) == together);
  CHECK(answer(*chunks, questions) == together);
  o = options_of("cuda");
  o.expert_memory = "50%";
  auto tiered = Engine::create(model, o);
  CHECK(answer(*tiered, questions) == together);
}
