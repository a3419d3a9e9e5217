// The scheduler: runs the threads of a block as fibers until all of them wait or have ended, then lets go those that
// wait for each other at one place. If there are none, the program is wrong, and one sentence says who waits for whom.
//
// Built without sanitizers whatever the kernels are built with, so that ThreadSanitizer sees the kernels' memory
// accesses alone; the sanitizers' entry points are weak and null where there is none. ThreadSanitizer takes each fiber
// for a thread, ordered with the others by barriers only: a missing barrier is a data race however the fibers ran.
// Blocks it sees in the order they ran; what passes between blocks of one launch shows where the order changes results.
#include "cuda_emulator.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#if !defined(__x86_64__) || defined(CUDA_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

extern "C" {
#define WEAK __attribute__((weak))
WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);
WEAK void* __tsan_get_current_fiber();
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* address);
WEAK void __tsan_release(void* address);
#undef WEAK
}

#if defined(__x86_64__) && !defined(CUDA_EMULATOR_UCONTEXT)
// Leaves one stack for another; what a call must preserve waits on the stack.
extern "C" void cuda_emulator_switch(void** from, void* to);
asm(R"(
.text
cuda_emulator_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {
namespace {

// --- switching stacks ------------------------------------------------------------------------------------------------

constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4 << 10;

void fiber_main();

#if defined(__x86_64__) && !defined(CUDA_EMULATOR_UCONTEXT)

using Context = void*;  // the stack pointer
void switch_context(Context& from, Context& to) { cuda_emulator_switch(&from, to); }
void start_context(Context& context, char* stack) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 8;  // six registers, the entry, no return address
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(&fiber_main);
  context = top;
}

#else

using Context = ucontext_t;
void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
void start_context(Context& context, char* stack) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
}

#endif

// A stack and what the sanitizers know about it.
struct Strand {
  Context context;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void *fake_stack = nullptr, *tsan = nullptr;
};

void switch_strand(Strand& from, Strand& to, bool for_good = false) {
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
  }
  constexpr unsigned kNoOrder = 1;
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to.tsan, kNoOrder);
  switch_context(from.context, to.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

// --- threads, and what they wait for ---------------------------------------------------------------------------------

enum class State { ready, waiting, ended };

struct Thread {
  Strand strand;
  uint3 index;
  unsigned warp, lane;
  State state;
  Wait wait;                    // if waiting
  uint64_t offered, delivered;  // to the shuffle that waits, by the one that went on
  unsigned turns[2];            // of a block barrier, of a warp barrier
};

// Addresses that stand for an order between threads. Barriers alternate between two, since a thread may come to the
// next one before another has left this one.
struct Orders {
  char launch_begins, thread_ends, block[2], warp[32][2];
};

struct Launch {
  dim3 grid, block;
  std::function<void()> thread;
};

// What runs one kernel. There are two, for a kernel that is waited for runs while the other stands still.
struct Emulator {
  Strand scheduler;
  std::vector<Thread> threads;
  unsigned count = 0;  // threads of the block
  Thread* current = nullptr;
  const std::function<void()>* body = nullptr;
  Orders orders;
};

Emulator emulators[2];
Emulator* running = emulators;

Emulator& emulator() { return *running; }

Launch launched;  // the last one, if it has not run: then it has a thread
std::string order = "up";
std::mt19937 random_numbers;
cudaError_t error = cudaSuccess;

[[noreturn]] void fail(const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "cuda_emulator: %s\n", message.c_str());
  std::_Exit(3);
}

std::string name_of(const char* kind, const uint3& index) {
  return std::string(kind) + " (" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string place_of(const Wait& wait) {
  return std::string(wait.what) + " at " + wait.file + ":" + std::to_string(wait.line);
}

bool same_place(const Wait& a, const Wait& b) {
  return a.line == b.line && a.lanes == b.lanes && std::strcmp(a.what, b.what) == 0 && std::strcmp(a.file, b.file) == 0;
}

// Whether a thread that waits as `waiting` does needs `other` to come.
bool needs(const Thread& waiting, const Thread& other) {
  if (waiting.wait.lanes == 0) return true;
  return other.warp == waiting.warp && (waiting.wait.lanes >> other.lane & 1) != 0;
}

// The first thread that `waiting` waits for and that is not there, or null.
Thread* missing_for(const Thread& waiting) {
  Emulator& e = emulator();
  // A warp wait concerns its own 32 threads only.
  const unsigned begin = waiting.wait.lanes == 0 ? 0 : waiting.warp * 32;
  const unsigned end = waiting.wait.lanes == 0 ? e.count : std::min(e.count, begin + 32);
  for (unsigned i = begin; i < end; ++i) {
    Thread& other = e.threads[i];
    if (!needs(waiting, other)) continue;
    if (other.state != State::waiting || !same_place(other.wait, waiting.wait)) return &other;
  }
  return nullptr;
}

// Lets go every group of threads that is complete. All threads wait or have ended when this is called.
bool release_groups() {
  Emulator& e = emulator();
  bool released = false, block_waits = false;
  for (unsigned i = 0; i < e.count; ++i) {
    const Thread& first = e.threads[i];
    if (first.state != State::waiting || (first.wait.lanes == 0 && block_waits)) continue;
    block_waits |= first.wait.lanes == 0;
    if (missing_for(first) != nullptr) continue;
    const Wait wait = first.wait;
    const unsigned end = wait.lanes == 0 ? e.count : std::min(e.count, first.warp * 32 + 32);
    for (unsigned k = i; k < end; ++k) {
      Thread& thread = e.threads[k];
      if (wait.lanes != 0 && (wait.lanes >> thread.lane & 1) == 0) continue;
      thread.delivered = thread.offered;
      thread.state = State::ready;
    }
    released = true;
  }
  return released;
}

std::string kind_of(const Wait& wait) {
  if (wait.lanes == 0) return "barrier";
  return std::strncmp(wait.what, "__shfl", 6) == 0 ? "shuffle" : "warp barrier";
}

[[noreturn]] void report_divergence() {
  Emulator& e = emulator();
  for (unsigned i = 0; i < e.count; ++i) {
    const Thread& thread = e.threads[i];
    if (thread.state != State::waiting) continue;
    const Thread& other = *missing_for(thread);
    fail("divergent " + kind_of(thread.wait) + ": " + name_of("thread", thread.index) + " of " +
         name_of("block", blockIdx) + " waits in " + place_of(thread.wait) + " for " + name_of("thread", other.index) +
         ", which " + (other.state == State::ended ? "has returned" : "waits in " + place_of(other.wait)));
  }
  fail("no thread can run");
}

void fiber_main() {
  Emulator& e = emulator();
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(nullptr, &e.scheduler.stack, &e.scheduler.stack_bytes);
  }
  if (__tsan_acquire) __tsan_acquire(&e.orders.launch_begins);
  (*e.body)();
  if (__tsan_release) __tsan_release(&e.orders.thread_ends);
  e.current->state = State::ended;
  switch_strand(e.current->strand, e.scheduler, true);
  std::abort();
}

// --- blocks and grids ------------------------------------------------------------------------------------------------

// The memory of all __shared__ variables: the thread-local segment of the program (not of its libraries). Where this is
// a library itself, others' variables lie in the segment as well.
void poison_shared_memory() {
#if !defined(CUDA_EMULATOR_IN_A_LIBRARY)
  dl_iterate_phdr(
      [](dl_phdr_info* program, size_t, void*) {
        for (int i = 0; i < program->dlpi_phnum; ++i) {
          if (program->dlpi_phdr[i].p_type != PT_TLS || program->dlpi_tls_data == nullptr) continue;
          std::memset(program->dlpi_tls_data, 0xff, program->dlpi_phdr[i].p_memsz);
        }
        return 1;  // the first one is the program
      },
      nullptr);
#endif
}

void arrange(std::vector<unsigned>& sequence) {
  if (order == "up") return;
  if (order == "down") {
    std::sort(sequence.begin(), sequence.end(), std::greater<>());
  } else {
    std::shuffle(sequence.begin(), sequence.end(), random_numbers);
  }
}

std::vector<unsigned> first_numbers(uint64_t count) {
  std::vector<unsigned> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  return numbers;
}

void make_threads(unsigned count) {
  Emulator& e = emulator();
  while (e.threads.size() < count) {
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for stacks");
    mprotect(memory, kGuardBytes, PROT_NONE);
    Thread thread = {};
    thread.strand.stack = static_cast<char*>(memory) + kGuardBytes;
    thread.strand.stack_bytes = kStackBytes;
    if (__tsan_create_fiber) thread.strand.tsan = __tsan_create_fiber(0);
    e.threads.push_back(thread);
  }
}

void run_block() {
  Emulator& e = emulator();
  poison_shared_memory();
  if (__tsan_release) __tsan_release(&e.orders.launch_begins);
  for (unsigned i = 0; i < e.count; ++i) {
    Thread& thread = e.threads[i];
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    thread.warp = i / 32;
    thread.lane = i % 32;
    thread.state = State::ready;
    start_context(thread.strand.context, static_cast<char*>(const_cast<void*>(thread.strand.stack)));
  }
  std::vector<unsigned> sequence = first_numbers(e.count);
  const auto has_ended = [](const Thread& thread) { return thread.state == State::ended; };
  for (;;) {
    arrange(sequence);
    for (const unsigned i : sequence) {
      if (e.threads[i].state != State::ready) continue;
      e.current = &e.threads[i];
      threadIdx = e.current->index;
      switch_strand(e.scheduler, e.current->strand);
    }
    if (std::all_of(e.threads.begin(), e.threads.begin() + e.count, has_ended)) break;
    if (!release_groups()) report_divergence();
  }
  if (__tsan_acquire) __tsan_acquire(&e.orders.thread_ends);
}

// The limits of every architecture since compute capability 3.0.
bool can_launch(const dim3& grid, const dim3& block) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  return threads > 0 && threads <= 1024 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 && grid.x > 0 &&
         grid.x <= 0x7fffffffu && grid.y > 0 && grid.y <= 65535 && grid.z > 0 && grid.z <= 65535;
}

void run(const Launch& launch) {
  Emulator& e = emulator();
  gridDim = launch.grid;
  blockDim = launch.block;
  e.body = &launch.thread;
  e.count = launch.block.x * launch.block.y * launch.block.z;
  make_threads(e.count);
  if (__tsan_get_current_fiber) e.scheduler.tsan = __tsan_get_current_fiber();
  std::vector<unsigned> blocks = first_numbers(uint64_t{gridDim.x} * gridDim.y * gridDim.z);
  arrange(blocks);
  for (const unsigned i : blocks) {
    blockIdx = {i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y};
    run_block();
  }
  e.current = nullptr;
}

void run_launched() {
  if (const Launch last = std::exchange(launched, {}); last.thread) run(last);
}

}  // namespace

void set_order(const std::string& name) {
  order = name;
  random_numbers.seed(static_cast<unsigned>(std::strtoul(name.c_str(), nullptr, 10)));
}

void launch(dim3 grid, dim3 block, bool early, std::function<void()> thread) {
  if (!can_launch(grid, block)) {
    error = cudaErrorInvalidConfiguration;
    return;
  }
  if (early) {
    run({grid, block, std::move(thread)});
  } else {
    run_launched();
    launched = {grid, block, std::move(thread)};
  }
}

// The earlier kernel runs on a system thread of its own, which has shared variables of its own.
void wait_for_earlier_kernel() {
  if (launched.thread) {
    const uint3 thread = threadIdx, block = blockIdx;
    const dim3 threads = blockDim, blocks = gridDim;
    running = &emulators[1];
    std::thread(run_launched).join();
    running = &emulators[0];
    threadIdx = thread, blockIdx = block, blockDim = threads, gridDim = blocks;
  }
  if (__tsan_acquire) __tsan_acquire(&emulators[1].orders.thread_ends);
}

void wait_for(const Wait& wait, bool orders_memory) {
  Emulator& e = emulator();
  Thread& thread = *e.current;
  if (wait.lanes != 0 && (wait.lanes >> thread.lane & 1) == 0) {
    fail(name_of("thread", thread.index) + " is not in the mask of its own " + place_of(wait));
  }
  const bool whole_block = wait.lanes == 0;
  char* order = nullptr;
  if (orders_memory) {
    const unsigned turn = thread.turns[whole_block ? 0 : 1]++ % 2;
    order = whole_block ? &e.orders.block[turn] : &e.orders.warp[thread.warp][turn];
  }
  if (order != nullptr && __tsan_release) __tsan_release(order);
  thread.wait = wait;
  thread.state = State::waiting;
  switch_strand(thread.strand, e.scheduler);
  if (order != nullptr && __tsan_acquire) __tsan_acquire(order);
}

uint64_t exchange(const Wait& wait, uint64_t value, unsigned source) {
  Emulator& e = emulator();
  Thread& thread = *e.current;
  thread.offered = value;
  wait_for(wait, false);
  if (source >= 32) return value;
  const unsigned from = thread.warp * 32 + source;
  if ((wait.lanes >> source & 1) == 0 || from >= e.count) {
    fail(name_of("thread", thread.index) + " reads lane " + std::to_string(source) + ", which takes no part in " +
         place_of(wait));
  }
  return e.threads[from].delivered;
}

unsigned lane() { return emulator().current->lane; }

}  // namespace cuda_emulator

cudaError_t cudaGetLastError() {
  cuda_emulator::run_launched();
  return std::exchange(cuda_emulator::error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "unspecified error";
}
