// parallel_for(n_tasks, n_threads, worker): shares tasks among the threads of torch's OpenMP team.
//
// A runtime of our own would put a second team beside torch's on the same cores. Torch loads its
// OpenMP runtime globally, so the entry point is found by name; libgomp, libiomp5 and LLVM's libomp
// all export it. Where none does (macOS), work runs on the calling thread.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

namespace m3 {

// The tasks of one call. Which thread gets which task varies, so a task must not depend on it.
class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}
  // Takes the next task into `task`; false when none is left.
  bool next(int64_t& task) {
    task = taken_.fetch_add(1, std::memory_order_relaxed);
    return task < count_;
  }

 private:
  std::atomic<int64_t> taken_{0};
  const int64_t count_;
};

// Threads worth waking up: a share of less than this many multiply-adds (some 10 us) costs more to
// hand over than to do, and milliseconds where another process has the second core.
constexpr int64_t SHARE = 1 << 20;
constexpr int64_t TASKS = 4;  // a thread, where a product can be cut into so many
inline int threads_for(int64_t multiply_adds, int threads) {
  return static_cast<int>(std::clamp<int64_t>(multiply_adds / SHARE, 1, std::max(threads, 1)));
}

// True where a team of threads was found.
bool has_team();

// Calls run(worker, tasks) on up to n_threads threads; an exception in one is thrown again here.
void run_team(int64_t n_tasks, int n_threads, void (*run)(void*, Tasks&), void* worker);

// worker(Tasks&) is called once per thread and takes tasks until none is left.
template <class Worker>
void parallel_for(int64_t n_tasks, int n_threads, Worker worker) {
  auto run = [](void* w, Tasks& tasks) { (*static_cast<Worker*>(w))(tasks); };
  run_team(n_tasks, n_threads, run, &worker);
}

}  // namespace m3
