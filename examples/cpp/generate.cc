// Greedy generation from token ids: generate MODEL_FOLDER ID... [prints the new ids]
#include <lynx_rt/engine.h>

#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: generate MODEL_FOLDER ID...\n";
    return 2;
  }
  try {
    auto engine = lynx_rt::Engine::create(argv[1], {});
    std::vector<int32_t> prompt;
    for (int i = 2; i < argc; ++i) prompt.push_back(int32_t(std::atoi(argv[i])));
    lynx_rt::SamplingParams params;
    params.temperature = 0;
    params.max_tokens = 32;
    engine->add_request(prompt, params);
    while (engine->has_unfinished())
      for (const lynx_rt::StepOutput& output : engine->step())
        for (int32_t id : output.token_ids) std::cout << id << " ";
    std::cout << "\n";
  } catch (const lynx_rt::Error& e) {
    std::cerr << "error " << int(e.code()) << " (" << e.field() << "): " << e.what() << "\n";
    return 1;
  }
}
