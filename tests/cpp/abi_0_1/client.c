/* A program of the time of the first header (beside this file): client MODEL_FOLDER. Its structs are followed by bytes that a library
 * which reads beyond `size` would fall over. Prints the tokens of two requests, and what has failed. */
#include <lynx_rt/lynx_rt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;
static void expect(int holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "expected: %s (%s)\n", what, lynx_rt_last_error());
  ++failures;
}
#define EXPECT(condition) expect(condition, #condition)

static void* poisoned(size_t size) {
  unsigned char* bytes = malloc(size + 1024);
  if (!bytes) exit(2);
  memset(bytes, 0, size);
  memset(bytes + size, 0xff, 1024);
  return bytes;
}

static void print(const lynx_rt_output* output, void* user) {
  lynx_rt_output copy = *output;
  size_t i;
  for (i = 0; i < copy.num_tokens; ++i) fprintf(user, "%d ", (int)copy.token_ids[i]);
  if (copy.finish == LYNX_RT_LENGTH) fprintf(user, "\n");
  EXPECT(copy.finish != LYNX_RT_ERROR && copy.error[0] == 0 && copy.request_id > 0);
}

int main(int argc, char** argv) {
  const int32_t prompt[] = {1, 20, 21};
  lynx_rt_options* options = poisoned(sizeof(lynx_rt_options));
  lynx_rt_params* params = poisoned(sizeof(lynx_rt_params));
  lynx_rt_engine* engine;
  uint64_t id = 0;
  int sampled;
  if (argc != 2) return 2;
  options->size = sizeof *options;
  options->device = "cpu";
  options->expert_selection = "topk";
  options->max_num_seqs = 4;
  options->quantization = "none";
  params->size = sizeof *params;
  params->max_tokens = 8;
  params->ignore_eos = 1;
  EXPECT(strncmp(lynx_rt_version(), "0.", 2) == 0);
  engine = lynx_rt_create(argv[1], options);
  EXPECT(engine != NULL);
  for (sampled = 0; engine && sampled < 2; ++sampled) {
    params->temperature = sampled ? 2.0f : 0.0f;
    params->has_seed = 1;
    params->seed = 5;
    EXPECT(lynx_rt_add_request(engine, prompt, 3, params, &id) == LYNX_RT_OK);
    while (lynx_rt_has_unfinished(engine))
      if (lynx_rt_step(engine, print, stdout) != LYNX_RT_OK) return 1;
  }
  EXPECT(lynx_rt_abort(engine, id) == LYNX_RT_NOT_FOUND);
  EXPECT(strstr(lynx_rt_last_error(), "unknown or finished") != NULL);
  EXPECT(lynx_rt_add_request(engine, prompt, 3, params, &id) == LYNX_RT_OK && lynx_rt_abort(engine, id) == LYNX_RT_OK);
  lynx_rt_destroy(engine);
  free(options);
  free(params);
  return failures != 0;
}
