/* Preloaded: reads at the offset HANG_OFFSET of files named HANG_FILE wait as long as the file HANG_WHILE exists. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

ssize_t pread(int file, void* to, size_t bytes, off_t offset) {
  const char *hangs = getenv("HANG_WHILE"), *named = getenv("HANG_FILE");
  if (hangs && named && offset == atoll(getenv("HANG_OFFSET"))) {
    char link[64], name[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if (readlink(link, name, sizeof name - 1) > 0 && strcmp(name, named) == 0)
      while (access(hangs, F_OK) == 0) usleep(10000);
  }
  return syscall(SYS_pread64, (long)file, to, bytes, offset);
}

ssize_t pread64(int file, void* to, size_t bytes, off_t offset) { return pread(file, to, bytes, offset); }
