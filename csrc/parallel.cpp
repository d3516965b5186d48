#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <exception>

namespace m3 {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Looked up at first use: torch has been imported by then.
Parallel find_parallel() {
  static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

struct Call {
  Call(void (*run_)(void*, Tasks&), void* worker_, int64_t n)
      : run(run_), worker(worker_), tasks(n) {}
  void (*run)(void*, Tasks&);
  void* worker;
  Tasks tasks;
  std::atomic<bool> failed{false};
  std::exception_ptr error;
};

void enter(void* data) {
  Call& call = *static_cast<Call*>(data);
  try {
    call.run(call.worker, call.tasks);
  } catch (...) {  // must not leave a thread of the team; the first one is thrown by the caller
    if (!call.failed.exchange(true)) call.error = std::current_exception();
  }
}

}  // namespace

bool has_team() { return find_parallel() != nullptr; }

void run_team(int64_t n_tasks, int n_threads, void (*run)(void*, Tasks&), void* worker) {
  if (n_tasks <= 0) return;
  const auto team = static_cast<unsigned>(std::min<int64_t>(n_tasks, std::max(n_threads, 1)));
  Call call(run, worker, n_tasks);
  Parallel parallel = team > 1 ? find_parallel() : nullptr;
  if (parallel)
    parallel(enter, &call, team, 0);
  else
    enter(&call);
  if (call.error) std::rethrow_exception(call.error);
}

}  // namespace m3
