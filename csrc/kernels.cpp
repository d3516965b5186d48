#include "kernels.h"

#include <atomic>
#include <cstring>

#include "check.h"

namespace m3 {
namespace {

std::atomic<const Kernels*> chosen{nullptr};

const Kernels* widest() {
  if (const Kernels* k = kernels_avx512bf16()) return k;
  if (const Kernels* k = kernels_avx512()) return k;
  if (const Kernels* k = kernels_avx2()) return k;
  return kernels_base();
}

}  // namespace

const Kernels& kernels() {
  const Kernels* now = chosen.load(std::memory_order_acquire);
  if (!now) {
    now = widest();
    chosen.store(now, std::memory_order_release);
  }
  return *now;
}

void force_kernels(const char* name) {
  if (!std::strcmp(name, "auto")) return chosen.store(widest());
  for (const Kernels* k : {kernels_base(), kernels_avx2(), kernels_avx512(), kernels_avx512bf16()})
    if (k && !std::strcmp(k->name, name)) return chosen.store(k);
  fail("cpu path: one that this machine runs or 'auto' was expected, got '", name, "'");
}

}  // namespace m3
