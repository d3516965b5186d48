// Lets g++ compile CUDA kernels for the CPU; takes the place of csrc/cuda/device.cuh.
//
// The threads of a block are fibres of one OS thread, so `__shared__` is thread_local. They run one
// at a time from barrier to barrier, in a random order; several blocks run at once on threads of
// their own and are started in a random order. Under -fsanitize=thread each fibre counts as a
// thread, and barriers and __syncwarp order memory: a missing one is a reported race.
#ifndef M3_CUDA_DEVICE_CUH
#define M3_CUDA_DEVICE_CUH
#include <sched.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "launch.h"

#define __global__
#define __device__
#define __shared__ static thread_local
#define __launch_bounds__(threads)
#define UNCHECKED __attribute__((no_sanitize("thread")))

struct Index {
  unsigned x;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
  uint4& operator=(const uint4& other) {
    if ((reinterpret_cast<uintptr_t>(this) | reinterpret_cast<uintptr_t>(&other)) % 16)
      throw "misaligned address";
    return *static_cast<uint4*>(std::memcpy(this, &other, sizeof other));
  }
};
inline thread_local Index threadIdx, blockIdx;

#ifdef __SANITIZE_THREAD__
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
constexpr unsigned NO_ORDER = 1;  // a switch alone does not order memory
#else
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
constexpr unsigned NO_ORDER = 0;
#endif

namespace emulate {

constexpr int MOST_THREADS = 256, RESIDENT = 4;
constexpr size_t STACK = 64 << 10;
enum State { READY, AT_BARRIER, AT_WARP, DONE };
enum Op { BALLOT, SUM, SYNC };

inline std::atomic<uint64_t> seed{0};
inline std::atomic<int64_t> words_read{0};  // by load_relaxed, other than 0
inline std::atomic<const char*> failure{nullptr};
// Milliseconds that one launch may take, all processors together. Of CPU time, which waiting blocks
// use up too: on a busy machine a launch takes longer by the clock.
inline std::atomic<int> patience{60'000};
inline std::clock_t deadline;

struct Fibre {
  ucontext_t context;
  void* tsan;
  State state;
  Op op;
  uint32_t value, result;
};

struct Block {
  ucontext_t scheduler;
  void* tsan;
  Fibre fibres[MOST_THREADS] = {};
  std::unique_ptr<char[]> stacks{new char[MOST_THREADS * STACK]};
  const std::function<void()>* kernel;
  int current;
  char start_and_end, barrier, warps[MOST_THREADS / 32];  // addresses that carry memory order
};
inline Block blocks[RESIDENT];  // kept from launch to launch: fibres are slow to make under TSan
inline thread_local Block* block;

UNCHECKED inline void wait(State state) {
  Fibre& fibre = block->fibres[block->current];
  fibre.state = state;
  __tsan_switch_to_fiber(block->tsan, NO_ORDER);
  swapcontext(&fibre.context, &block->scheduler);
}

UNCHECKED inline void enter() {
  __tsan_acquire(&block->start_and_end);
  try {
    (*block->kernel)();
  } catch (const char* error) {
    failure = error;
  }
  __tsan_release(&block->start_and_end);
  wait(DONE);
}

UNCHECKED inline uint32_t warp_wide(Op op, uint32_t value) {
  Fibre& fibre = block->fibres[block->current];
  char* order = &block->warps[block->current / 32];
  fibre.op = op;
  fibre.value = value;
  if (op == SYNC) __tsan_release(order);
  wait(AT_WARP);
  if (op == SYNC) __tsan_acquire(order);
  return fibre.result;
}

// Runs on once all 32 lanes have come to the same collective.
UNCHECKED inline bool finish_warps(Block& b, int threads) {
  bool moved = false;
  for (int first = 0; first < threads; first += 32) {
    Fibre* lanes = b.fibres + first;
    uint32_t waiting = 0, ballot = 0, sum = 0;
    for (int i = 0; i < 32; ++i) {
      waiting += lanes[i].state == AT_WARP && lanes[i].op == lanes[0].op;
      ballot |= (lanes[i].value != 0 ? 1u : 0u) << i;
      sum += lanes[i].value;
    }
    if (waiting < 32) continue;
    for (int i = 0; i < 32; ++i) {
      lanes[i].result = lanes[i].op == BALLOT ? ballot : sum;
      lanes[i].state = READY;
    }
    moved = true;
  }
  return moved;
}

UNCHECKED inline void run_block(Block& b, int threads, std::mt19937_64& random) {
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  __tsan_release(&b.start_and_end);
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = b.fibres[i];
    fibre.state = READY;
    if (!fibre.tsan) fibre.tsan = __tsan_create_fiber(0);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = b.stacks.get() + i * STACK;
    fibre.context.uc_stack.ss_size = STACK;
    makecontext(&fibre.context, enter, 0);
  }
  while (!failure) {
    std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (int i : order)
      if (b.fibres[i].state == READY) {
        b.current = i;
        threadIdx.x = i;
        __tsan_switch_to_fiber(b.fibres[i].tsan, NO_ORDER);
        swapcontext(&b.scheduler, &b.fibres[i].context);
        moved = true;
      }
    moved |= finish_warps(b, threads);
    int count[4] = {};
    for (int i = 0; i < threads; ++i) ++count[b.fibres[i].state];
    if (count[DONE] == threads) break;
    if (count[AT_BARRIER] == threads)
      for (int i = 0; i < threads; ++i) b.fibres[i].state = READY;
    else if (!moved)
      failure = "the threads of a block wait at different barriers";
  }
  __tsan_acquire(&b.start_and_end);
}

inline void run(const char* name, int64_t count, int threads, const std::function<void()>& kernel) {
  if (threads > MOST_THREADS || threads % 32 || count < 1 || count > INT32_MAX)
    throw std::runtime_error(std::string(name) + ": bad launch");
  const uint64_t first_seed = seed.fetch_add(RESIDENT + 1);
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(first_seed));
  failure = nullptr;
  deadline = std::clock() + std::clock_t{patience} * (CLOCKS_PER_SEC / 1000);
  std::atomic<int64_t> next{0};
  std::vector<std::thread> processors;
  for (int p = 0; p < RESIDENT; ++p)
    processors.emplace_back([&, p] {
      std::mt19937_64 random(first_seed + 1 + p);
      block = &blocks[p];
      block->kernel = &kernel;
      block->tsan = __tsan_get_current_fiber();
      for (int64_t i; !failure && (i = next++) < count;) {
        blockIdx.x = order[i];
        run_block(*block, threads, random);
      }
    });
  for (auto& processor : processors) processor.join();
  if (failure) throw std::runtime_error(std::string(name) + ": " + failure.load());
}

}  // namespace emulate

inline void __syncthreads() {
  __tsan_release(&emulate::block->barrier);
  emulate::wait(emulate::AT_BARRIER);
  __tsan_acquire(&emulate::block->barrier);
}
inline void __syncwarp() { emulate::warp_wide(emulate::SYNC, 0); }
inline unsigned __ballot_sync(unsigned, bool value) {
  return emulate::warp_wide(emulate::BALLOT, value);
}
inline int __reduce_add_sync(unsigned, int value) { return emulate::warp_wide(emulate::SUM, value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(unsigned value) { return __builtin_ffs(value); }

namespace m3::cuda {

constexpr unsigned ALL_LANES = 0xffffffff;

inline uint64_t load_relaxed(const uint64_t* p) {
  sched_yield();  // whoever waits for another block lets it run
  if (emulate::failure || std::clock() > emulate::deadline)
    throw "blocks wait for one another";
  const uint64_t v = __atomic_load_n(p, __ATOMIC_RELAXED);
  emulate::words_read += v != 0;
  return v;
}
inline void store_relaxed(uint64_t* p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
inline uint64_t fetch_add_acq_rel(uint64_t* p, uint64_t v) {
  return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL);
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), int64_t blocks, int threads,
            const Stream&, Args... args) {
  emulate::run(name, blocks, threads, [&] { kernel(args...); });
}

}  // namespace m3::cuda

#endif
