/* generate.cc over the C ABI. */
#include <lynx_rt/lynx_rt.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_tokens(const lynx_rt_output* output, void* user) {
  FILE* out = user;
  for (size_t i = 0; i < output->num_tokens; ++i) fprintf(out, "%d ", (int)output->token_ids[i]);
}

static int fail(lynx_rt_engine* engine) {
  fprintf(stderr, "error: %s\n", lynx_rt_last_error());
  lynx_rt_destroy(engine);
  return 1;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: generate_c MODEL_FOLDER ID...\n");
    return 2;
  }
  lynx_rt_engine* engine = lynx_rt_create(argv[1], NULL);
  if (!engine) return fail(NULL);

  size_t count = (size_t)(argc - 2);
  int32_t* prompt = malloc(count * sizeof *prompt);
  if (!prompt) return 1;
  for (size_t i = 0; i < count; ++i) prompt[i] = (int32_t)atoi(argv[i + 2]);
  lynx_rt_params params;
  memset(&params, 0, sizeof params); /* greedy */
  params.size = sizeof params;
  params.max_tokens = 32;
  uint64_t id;
  lynx_rt_status status = lynx_rt_add_request(engine, prompt, count, &params, &id);
  free(prompt);
  if (status != LYNX_RT_OK) return fail(engine);

  while (lynx_rt_has_unfinished(engine))
    if (lynx_rt_step(engine, print_tokens, stdout) != LYNX_RT_OK) return fail(engine);
  printf("\n");
  lynx_rt_destroy(engine);
  return 0;
}
