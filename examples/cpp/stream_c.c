/* Streams tokens with their log probabilities, in plain C99: stream_c MODEL_FOLDER ID... [a line per token on stdout, what was
 * loaded and measured on stderr]. Requests are served by lynx_rt_wait_for_work() and lynx_rt_step(), as a server's thread would. */
#include <lynx_rt/lynx_rt.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int on_load_progress(int64_t done, int64_t total, void* user) {
  fprintf(user, "\rloading: %d %%%s", (int)(100.0 * (double)done / (double)total), done == total ? "\n" : "");
  return 1; /* go on */
}

static void on_log(lynx_rt_log_level level, const char* text, void* user) {
  fprintf(user, "%s: %s\n", level == LYNX_RT_LOG_WARNING ? "warning" : "info", text);
}

static void on_output(const lynx_rt_output* output, void* user) {
  size_t i, j;
  (void)user;
  for (i = 0; i < output->num_tokens; ++i) {
    const lynx_rt_logprobs* logprobs = &output->logprobs[i];
    printf("%d %.4f", (int)output->token_ids[i], logprobs->entries[0].logprob);
    for (j = 1; j < logprobs->num_entries; ++j)
      printf("  %d:%.4f", (int)logprobs->entries[j].token_id, logprobs->entries[j].logprob);
    printf("\n");
  }
  fflush(stdout);
  if (output->finish == LYNX_RT_STOP) fprintf(stderr, "stopped by token %d\n", (int)output->stop_token_id);
  if (output->finish == LYNX_RT_LENGTH) fprintf(stderr, "reached its length\n");
  if (output->finish == LYNX_RT_ERROR) fprintf(stderr, "ended with an error: %s\n", output->error);
}

static int fail(lynx_rt_engine* engine) {
  fprintf(stderr, "error %d: %s\n", (int)lynx_rt_last_status(), lynx_rt_last_error());
  lynx_rt_destroy(engine);
  return 1;
}

static int print_stats(lynx_rt_engine* engine) {
  const lynx_rt_stats* stats = lynx_rt_get_stats(engine);
  size_t i;
  if (!stats) return fail(engine);
  fprintf(stderr, "%d tokens in %d steps, %.1f ms each\n", (int)stats->generation_tokens, (int)stats->steps,
          1e3 * stats->step_seconds / (double)stats->steps);
  for (i = 0; i < stats->num_layers; ++i)
    if (stats->layers[i]->steps)
      fprintf(stderr, "layer %d: %.1f experts read per step\n", (int)stats->layers[i]->layer,
              (double)stats->layers[i]->active / (double)stats->layers[i]->steps);
  lynx_rt_free_stats(stats);
  lynx_rt_destroy(engine);
  return 0;
}

int main(int argc, char** argv) {
  lynx_rt_options options;
  lynx_rt_params params;
  lynx_rt_engine* engine;
  lynx_rt_status status;
  size_t i, count = (size_t)(argc - 2);
  int32_t* prompt;
  uint64_t id;
  int has_work = 0;
  if (argc < 3) {
    fprintf(stderr, "usage: stream_c MODEL_FOLDER ID...\n");
    return 2;
  }
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.on_load_progress = on_load_progress;
  options.load_progress_user = stderr;
  options.on_log = on_log;
  options.log_user = stderr;
  engine = lynx_rt_create(argv[1], &options);
  if (!engine) return fail(NULL);

  memset(&params, 0, sizeof params); /* greedy */
  params.size = sizeof params;
  params.max_tokens = 32;
  params.has_logprobs = 1;
  params.logprobs = 3;
  prompt = malloc(count * sizeof *prompt);
  if (!prompt) return 1;
  for (i = 0; i < count; ++i) prompt[i] = (int32_t)atoi(argv[i + 2]);
  status = lynx_rt_add_request(engine, prompt, count, &params, &id);
  free(prompt);
  if (status != LYNX_RT_OK) return fail(engine);

  /* A server would wait for the next request with -1 instead of leaving where nothing is to be done. */
  while (lynx_rt_wait_for_work(engine, 0, &has_work) == LYNX_RT_OK && has_work)
    if (lynx_rt_step(engine, on_output, NULL) != LYNX_RT_OK) return fail(engine);
  return print_stats(engine);
}
