/* Preloaded: reads of the file HANG_FILE at the offset HANG_OFFSET wait as long as the file HANG_WHILE exists, and all of its reads take up
   to MOST_DELAY_US longer. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

ssize_t pread(int file, void* to, size_t bytes, off_t offset) {
  const char *hangs = getenv("HANG_WHILE"), *named = getenv("HANG_FILE"), *delay = getenv("MOST_DELAY_US");
  const int may_hang = hangs && offset == atoll(getenv("HANG_OFFSET")), may_wait = delay && atoi(delay) > 0;
  if (named && (may_hang || may_wait)) {
    char link[64], name[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if (readlink(link, name, sizeof name - 1) > 0 && strcmp(name, named) == 0) {
      while (may_hang && access(hangs, F_OK) == 0) usleep(10000);
      if (may_wait) usleep(rand() % atoi(delay));
    }
  }
  return syscall(SYS_pread64, (long)file, to, bytes, offset);
}

ssize_t pread64(int file, void* to, size_t bytes, off_t offset) { return pread(file, to, bytes, offset); }
