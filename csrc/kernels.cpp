#include "kernels.h"

#include <atomic>
#include <cstring>

#include "check.h"

namespace m3 {
namespace {

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

std::vector<const Kernels*> runnable_kernels() {
  std::vector<const Kernels*> found;
  for (const Kernels* k :
       {kernels_amx(), kernels_avx512bf16(), kernels_avx512vnni(), kernels_avx512(),
        kernels_avxvnni(), kernels_avx2(), kernels_portable()})
    if (k) found.push_back(k);
  return found;
}

const Kernels& kernels() {
  const Kernels* now = chosen.load(std::memory_order_acquire);
  if (!now) {
    now = runnable_kernels().front();
    chosen.store(now, std::memory_order_release);
  }
  return *now;
}

void use_kernels(const char* name) {
  for (const Kernels* k : runnable_kernels())
    if (!std::strcmp(k->name, name)) return chosen.store(k);
  fail("cpu path: expected one that this machine runs, found '", name, "'");
}

}  // namespace m3
