// The scheduler of the emulator. It is not instrumented by ThreadSanitizer, because its own accesses are not the kernel's.
#include "simt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"

namespace simt {

Position* current = nullptr;

namespace {

constexpr int kLanes = 32;
constexpr int kMaxBlockThreads = 1024;
constexpr int kMaxBarriers = 16;  // 0 is sync_block()
constexpr int kMaxCopies = 64;    // most copies of one thread in flight

enum class State { kReady, kBarrier, kCollective, kDone };

// Two sanitizer clocks, used in turn: a thread that leaves late must not see what others did before the next meeting.
struct Meeting {
  char clock[2];
  int count = 0;
};

struct Block;

struct Thread : Position {
  Stack stack;
  State state = State::kDone;
  Block* owner = nullptr;
  int index = 0;    // in the block
  int barrier = 0;  // where it waits
  Call call{};
  struct {
    void* to;
    const void* from;
    int bytes, group;
  } copies[kMaxCopies];
  int num_copies = 0;
  int num_groups = 0;  // committed groups of copies

  int lane() const { return index % kLanes; }
};

struct Barrier {
  Meeting meeting;
  int arrived = 0;
  int expected = 0;  // named barriers
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  int num_threads = 0;
  int num_live = 0;
  // One block's meetings, kept until the grid is done, so that ThreadSanitizer tells blocks apart.
  struct Meetings {
    char start;
    Barrier barriers[kMaxBarriers];
    Meeting warps[kMaxBlockThreads / kLanes][kLanes];  // per lowest lane of the mask
    // Lanes that wait at a collective. Nearly always all of them are at the same one, and an arrival need not look at each lane.
    struct Waiting {
      uint32_t lanes = 0, mask = 0;
      Op op = Op::kShuffle;
      bool alike = true;
    } waiting[kMaxBlockThreads / kLanes];
  };
  Meetings* meetings = nullptr;

  uint32_t lanes_of_warp(int warp) const {
    const int n = std::min(kLanes, num_threads - warp * kLanes);
    return n == kLanes ? 0xffffffffu : (1u << n) - 1;
  }
};

struct Grid {
  void (*body)(const void*);
  const void* arguments;
  Dim3 grid, block;
  size_t shared_bytes;
  size_t next = 0;  // block to start
  std::vector<std::unique_ptr<Block::Meetings>> meetings;
  std::vector<void*> shared;
  std::exception_ptr error;
  char done;  // sanitizer clock

  size_t size() const { return size_t(grid.x) * grid.y * grid.z; }
};

// The state that is kept from grid to grid, because stacks are costly to make.
struct Machine {
  Options options;
  std::vector<std::unique_ptr<Block>> blocks;  // the first `resident` are in use
  std::vector<Thread*> ready;                  // a ring, `first` and `count`
  size_t first = 0, count = 0;
  uint64_t random = 0;
  Stack scheduler;
  Grid* grid = nullptr;
};

Options options_of_environment() {
  Options o;
  if (const char* copy = std::getenv("SIMT_COPY")) {
    o.copy = std::string(copy) == "eager" ? Copy::kEager : Copy::kLazy;
  }
  if (const char* seed = std::getenv("SIMT_SEED")) o.seed = std::strtoull(seed, nullptr, 10);
  return o;
}

Machine& machine() {
  static Machine instance{options_of_environment(), {}, {}, 0, 0, 0, {}, nullptr};
  return instance;
}

Thread& self() { return *static_cast<Thread*>(current); }

uint64_t draw() {  // xorshift64
  uint64_t& r = machine().random;
  r ^= r << 13, r ^= r >> 7, r ^= r << 17;
  return r;
}

void make_ready(Thread& t) {
  Machine& m = machine();
  t.state = State::kReady;
  m.ready[(m.first + m.count++) % m.ready.size()] = &t;
}

Thread& take_ready() {
  Machine& m = machine();
  const size_t n = m.ready.size();
  if (m.options.seed) std::swap(m.ready[m.first], m.ready[(m.first + draw() % m.count) % n]);
  Thread& t = *m.ready[m.first];
  m.first = (m.first + 1) % n;
  --m.count;
  return t;
}

void leave() { Stack::change(self().stack, machine().scheduler); }

void give_way() {
  if (!machine().options.seed || draw() % 2) return;
  make_ready(self());
  leave();
}

std::string hex(uint32_t v) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", v);
  return text;
}

std::string where(const Thread& t) {
  return "block (" + std::to_string(t.block.x) + ", " + std::to_string(t.block.y) + ", " + std::to_string(t.block.z) + ") warp " +
         std::to_string(t.index / kLanes) + " lane " + std::to_string(t.lane());
}

// Ends the grid: thread_main() catches the Fault, and no thread runs again.
[[noreturn]] void end_grid(const std::string& text) { throw Fault(text); }

std::string waiting_for(const Thread& t) {
  switch (t.state) {
    case State::kBarrier: return t.barrier ? "sync_named " + std::to_string(t.barrier) : "sync_block";
    case State::kCollective: return std::string(name(t.call.op)) + " of mask " + hex(t.call.mask);
    case State::kDone: return "nothing: returned";
    default: return "its turn";
  }
}

// Returns a text of which threads wait where; lanes of a warp that wait at the same place are one line.
std::string deadlock_report() {
  std::string text = "deadlock:";
  for (const auto& b : machine().blocks) {
    if (!b->num_live) continue;
    for (int warp = 0; warp * kLanes < b->num_threads; ++warp) {
      uint32_t left = b->lanes_of_warp(warp);
      while (left) {
        const Thread& t = *b->threads[warp * kLanes + __builtin_ctz(left)];
        const std::string reason = waiting_for(t);
        uint32_t same = 0;
        for (int l = 0; l < kLanes; ++l)
          if ((left >> l & 1) && waiting_for(*b->threads[warp * kLanes + l]) == reason) same |= 1u << l;
        text += "\n  block (" + std::to_string(t.block.x) + ", " + std::to_string(t.block.y) + ", " + std::to_string(t.block.z) +
                ") warp " + std::to_string(warp) + " lanes " + hex(same) + " wait for " + reason;
        left &= ~same;
      }
    }
  }
  return text;
}

// Opens a barrier that enough threads have reached. They must be whole warps, because the hardware counts warps.
void open_barrier(Block& b, int id) {
  Barrier& barrier = b.meetings->barriers[id];
  for (int warp = 0; warp * kLanes < b.num_threads; ++warp) {
    uint32_t here = 0;
    for (uint32_t left = b.lanes_of_warp(warp); left; left &= left - 1) {
      const int l = __builtin_ctz(left);
      const Thread& t = *b.threads[warp * kLanes + l];
      if (t.state == State::kBarrier && t.barrier == id) here |= 1u << l;
    }
    if (here && here != b.lanes_of_warp(warp)) {
      machine().grid->error = std::make_exception_ptr(
          Fault("barrier in divergent code: warp " + std::to_string(warp) + " is there with lanes " + hex(here) + " only"));
      return;
    }
  }
  barrier.arrived = 0;
  ++barrier.meeting.count;
  for (int i = 0; i < b.num_threads; ++i)
    if (Thread& t = *b.threads[i]; t.state == State::kBarrier && t.barrier == id) make_ready(t);
}

void wait_at_barrier(int id, int threads) {
  Thread& t = self();
  Block& b = *t.owner;
  Barrier& barrier = b.meetings->barriers[id];
  if (barrier.arrived && barrier.expected != threads)
    end_grid(where(t) + ": threads disagree on the size of barrier " + std::to_string(id));
  char* clock = &barrier.meeting.clock[barrier.meeting.count % 2];
  tsan_release(clock);
  t.state = State::kBarrier;
  t.barrier = id;
  barrier.expected = threads;
  if (++barrier.arrived == (id ? threads : b.num_live)) open_barrier(b, id);
  leave();
  tsan_acquire(clock);
}

void thread_main() {
  Stack::arrive();
  Thread& t = self();
  Grid& grid = *machine().grid;
  tsan_acquire(&t.owner->meetings->start);
  try {
    grid.body(grid.arguments);
  } catch (...) {
    grid.error = std::current_exception();
  }
  tsan_release(&grid.done);
  t.state = State::kDone;
  Block& b = *t.owner;
  --b.num_live;
  Barrier& all = b.meetings->barriers[0];
  if (all.arrived && all.arrived == b.num_live) open_barrier(b, 0);
  leave();
  std::terminate();  // a finished thread is not resumed
}

void start_block(Block& b) {
  Grid& g = *machine().grid;
  const size_t id = g.next++;
  g.meetings.push_back(std::make_unique<Block::Meetings>());
  b.meetings = g.meetings.back().get();
  // Has exactly the size asked for, so that AddressSanitizer sees an overrun; without it, some slack protects the heap.
#if defined(__SANITIZE_ADDRESS__)
  const size_t slack = 0;
#else
  const size_t slack = 512;
#endif
  void* shared = nullptr;
  if (posix_memalign(&shared, 128, g.shared_bytes + slack + (g.shared_bytes == 0))) throw std::bad_alloc();
  g.shared.push_back(shared);
  std::memset(shared, 0xff, g.shared_bytes + slack);
  tsan_release(&b.meetings->start);

  b.num_threads = b.num_live = int(g.block.x * g.block.y * g.block.z);
  for (int i = 0; i < b.num_threads; ++i) {
    if (int(b.threads.size()) == i) b.threads.push_back(std::make_unique<Thread>());
    Thread& t = *b.threads[i];
    t.thread = Dim3(i % g.block.x, i / g.block.x % g.block.y, i / g.block.x / g.block.y);
    t.block = Dim3(id % g.grid.x, id / g.grid.x % g.grid.y, id / g.grid.x / g.grid.y);
    t.block_dim = g.block;
    t.grid_dim = g.grid;
    t.shared = static_cast<unsigned char*>(shared);
    t.owner = &b;
    t.index = i;
    t.num_copies = t.num_groups = 0;
    t.stack.start(thread_main);
    make_ready(t);
  }
}

void run_blocks() {
  Machine& m = machine();
  for (;;) {
    for (int i = 0; i < m.options.resident; ++i)
      if (!m.blocks[i]->num_live && m.grid->next < m.grid->size()) start_block(*m.blocks[i]);
    if (!m.count) return;
    Thread& t = take_ready();
    current = &t;
    Stack::change(m.scheduler, t.stack);
    if (m.grid->error) return;
  }
}

}  // namespace

Options& options() { return machine().options; }

void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(const void*), const void* arguments) {
  Machine& m = machine();
  const size_t threads = size_t(block.x) * block.y * block.z;
  if (!threads || threads > kMaxBlockThreads) throw Fault("block: expected 1..1024 threads, got " + std::to_string(threads));
  Grid g{body, arguments, grid, block, shared_bytes, 0, {}, {}, nullptr, 0};
  m.grid = &g;
  m.first = m.count = 0;
  m.random = m.options.seed * 0x9e3779b97f4a7c15u | 1;
  while (int(m.blocks.size()) < m.options.resident) m.blocks.push_back(std::make_unique<Block>());
  m.ready.resize(threads * m.options.resident);
  for (auto& b : m.blocks) b->num_live = b->num_threads = 0;

  run_blocks();
  current = nullptr;
  bool alive = false;
  for (auto& b : m.blocks) alive = alive || b->num_live;
  if (!g.error && alive) g.error = std::make_exception_ptr(Fault(deadlock_report()));
  for (auto& b : m.blocks)
    for (int i = 0; i < b->num_threads; ++i)
      if (b->threads[i]->state != State::kDone) b->threads[i]->stack.discard(&g.done);
  tsan_acquire(&g.done);
  for (void* p : g.shared) std::free(p);
  if (g.error) std::rethrow_exception(g.error);
}

void collective(const Call& call) {
  Thread& t = self();
  Block& b = *t.owner;
  const int warp = t.index / kLanes;
  const char* wrong_mask = nullptr;
  if (!(call.mask >> t.lane() & 1)) wrong_mask = ": the lane is not in its mask ";
  if (call.mask & ~b.lanes_of_warp(warp)) wrong_mask = ": the block lacks lanes of the mask ";
  if (wrong_mask) end_grid(where(t) + ": " + name(call.op) + wrong_mask + hex(call.mask));
  if (call.op == Op::kLoadMatrix || call.op == Op::kLoadMatrixTransposed) tsan_read(call.in, 16);

  Meeting& meeting = b.meetings->warps[warp][__builtin_ctz(call.mask)];
  char* clock = &meeting.clock[meeting.count % 2];
  const bool orders = call.op == Op::kSyncWarp;
  if (orders) tsan_release(clock);
  t.call = call;
  t.state = State::kCollective;

  auto& waiting = b.meetings->waiting[warp];
  if (!waiting.lanes) waiting = {0, call.mask, call.op, true};
  waiting.lanes |= 1u << t.lane();
  waiting.alike = waiting.alike && waiting.mask == call.mask && waiting.op == call.op;
  bool complete = waiting.lanes == call.mask;
  if (!waiting.alike) {
    complete = true;
    for (uint32_t left = call.mask; left; left &= left - 1) {
      const int l = __builtin_ctz(left);
      const Thread& other = *b.threads[warp * kLanes + l];
      const bool waits_for_me = other.state == State::kCollective && (other.call.mask >> t.lane() & 1);
      if (waits_for_me && (other.call.mask != call.mask || other.call.op != call.op))
        end_grid(where(t) + " is at " + waiting_for(t) + ", lane " + std::to_string(l) + " at " + waiting_for(other));
      complete = complete && waits_for_me;
    }
  }
  if (complete) {
    const Call* lanes[kLanes] = {};
    for (uint32_t left = call.mask; left; left &= left - 1)
      lanes[__builtin_ctz(left)] = &b.threads[warp * kLanes + __builtin_ctz(left)]->call;
    waiting.lanes &= ~call.mask;
    if (const char* wrong = compute(lanes)) end_grid(where(t) + ": " + waiting_for(t) + ": " + wrong);
    if (orders) ++meeting.count;
    for (int l = 0; l < kLanes; ++l)
      if (lanes[l]) make_ready(*b.threads[warp * kLanes + l]);
  }
  leave();
  if (orders) tsan_acquire(clock);
}

void sync_block() { wait_at_barrier(0, 0); }
void sync_named(int id, int threads) { wait_at_barrier(id, threads); }

namespace {
void land(void* to, const void* from, int bytes) {
  tsan_read(from, bytes);
  tsan_write(to, 16);
  std::memcpy(to, from, bytes);
  std::memset(static_cast<char*>(to) + bytes, 0, 16 - bytes);
}
}  // namespace

void copy_async(void* shared, const void* global, int source_bytes) {
  Thread& t = self();
  if (uintptr_t(shared) % 16 || uintptr_t(global) % 16) end_grid(where(t) + ": copy_async_16: an address is not 16-byte aligned");
  if (machine().options.copy == Copy::kEager) {
    land(shared, global, source_bytes);
  } else {
    if (t.num_copies == kMaxCopies) end_grid(where(t) + ": more than 64 asynchronous copies under way");
    t.copies[t.num_copies++] = {shared, global, source_bytes, t.num_groups};
  }
  give_way();
}

void copy_commit() { ++self().num_groups; }

void copy_wait(int left) {
  Thread& t = self();
  int kept = 0;
  for (int i = 0; i < t.num_copies; ++i) {
    const auto copy = t.copies[i];
    if (copy.group < t.num_groups - left) {
      land(copy.to, copy.from, copy.bytes);
    } else {
      t.copies[kept++] = copy;
    }
  }
  t.num_copies = kept;
  give_way();
}

void after_atomic() {
#if defined(SIMT_TSAN)
  make_ready(self());
  leave();
#else
  give_way();
#endif
}

}  // namespace simt
