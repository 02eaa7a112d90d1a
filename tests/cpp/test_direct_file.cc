// Tests csrc/base/direct_file.h: what a read does with every kind of trouble below it.
#include "base/direct_file.h"

#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/memory.h"
#include "check.h"
#include "faulty_calls.h"
#include "temp_folder.h"

using namespace lynx_rt;

namespace {

constexpr int64_t kPage = 4096, kSize = 5 * kPage;

struct Fixture {
  Fixture() : text(size_t(kSize), '\0'), to(static_cast<char*>(allocate_pages(kSize, "test"))) {
    for (size_t i = 0; i < text.size(); ++i) text[i] = char(i * 31 >> 3);
    path = folder.write("file", text);
    std::memset(to, 1, kSize);
  }
  ~Fixture() { release_pages(to, kSize); }
  // Reads pages [begin, begin + count) and says whether exactly their bytes came.
  bool reads(const DirectFile& file, int64_t begin, int64_t count, ReadResult& result) {
    std::memset(to, 1, kSize);
    result = file.read(begin * kPage, count * kPage, to);
    return result.ok() && std::memcmp(to, text.data() + begin * kPage, size_t(count * kPage)) == 0;
  }

  TempFolder folder;
  std::string text, path;
  char* to;
  FaultyCalls calls;
  ReadResult result;
};

void test_plain() {
  Fixture f;
  const DirectFile file(f.path);  // the system's calls
  CHECK_EQ(file.size(), kSize);
  CHECK(f.reads(file, 1, 3, f.result));
  CHECK_EQ(f.result.num_short_reads, 0);
}

void test_open() {
  Fixture f;
  CHECK_THROWS(DirectFile(f.folder.path("gone")), ErrorCode::kNotFound, f.folder.path("gone"), {"cannot open"});
  CHECK_THROWS(DirectFile(f.folder.path()), ErrorCode::kCorruptFile, f.folder.path(), {"expected a file, found a folder"});
  f.folder.write("empty", "");
  CHECK_THROWS(DirectFile(f.folder.path("empty")), ErrorCode::kCorruptFile, f.folder.path("empty"), {"found an empty one"});
  CHECK_THROWS(DirectFile(std::string("a\0b", 3)), ErrorCode::kNotFound, (std::string("a\0b", 3)), {"NUL"});
}

void test_file_systems_without_direct_reads() {
  for (const bool at_open : {true, false}) {
    Fixture f;
    (at_open ? f.calls.refuse_direct : f.calls.refuse_direct_reads) = true;
    const DirectFile file(f.path, f.calls);
    CHECK_EQ(file.is_direct(), !at_open);
    CHECK(f.reads(file, 0, 2, f.result));
    CHECK(!file.is_direct());
    CHECK_EQ(f.calls.dropped_bytes.load(), 2 * kPage);
    const int64_t tried = f.calls.num_direct;
    CHECK(f.reads(file, 3, 2, f.result));
    CHECK_EQ(f.calls.num_direct.load(), tried);  // not again
  }
}

void test_short_reads_and_signals() {
  for (const int64_t most : {int64_t(1), int64_t(100), kPage, 3 * kPage}) {
    Fixture f;
    f.calls.most_bytes = most;
    f.calls.interrupt_every = 3;
    const DirectFile file(f.path, f.calls);
    CHECK(f.reads(file, 0, 5, f.result));
    CHECK_EQ(f.result.num_short_reads, (kSize + most - 1) / most - 1);
    CHECK_EQ(f.result.retries, 0);
    // Aligned rests are read directly again; others go through the cache and are removed from it.
    CHECK_EQ(f.calls.dropped_bytes.load(), most % kPage ? kSize : 0);
  }
}

void test_errors() {
  for (const int error : {EIO, ESTALE, EBADF}) {
    Fixture f;
    f.calls.error = error;
    f.calls.fail_from = 0;
    const DirectFile file(f.path, f.calls);
    CHECK_EQ(f.reads(file, 0, 5, f.result), error != EBADF);  // one retry
    CHECK_EQ(f.result.retries, error == EBADF ? 0 : 1);
    f.calls.fail_from = f.calls.num_reads;
    f.calls.num_fails = 2;
    CHECK(!f.reads(file, 2, 1, f.result));
    CHECK_EQ(f.result.error, error);
    CHECK_EQ(f.result.offset, 2 * kPage);
    CHECK_EQ(f.to[0], 1);                                      // nothing is made up
    CHECK(f.reads(file, 2, 1, f.result) == (error != EBADF));  // EBADF has one failure left
    CHECK(f.reads(file, 2, 1, f.result));
  }
}

void test_truncation() {
  Fixture f;
  const DirectFile file(f.path, f.calls);
  f.calls.size = 3 * kPage + 5;
  CHECK(f.reads(file, 0, 3, f.result));
  CHECK(!f.reads(file, 0, 5, f.result));
  CHECK(f.result.truncated && f.result.error == 0);
  CHECK_EQ(f.result.offset, 3 * kPage + 5);
}

}  // namespace

int main() {
  test_plain();
  test_open();
  test_file_systems_without_direct_reads();
  test_short_reads_and_signals();
  test_errors();
  test_truncation();
  return check::result("test_direct_file");
}
