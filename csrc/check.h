// Checks that throw std::invalid_argument, which Python sees as ValueError.
// M3_CHECK(cond, parts...) makes the message of its parts.
#pragma once
#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace m3 {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

}  // namespace m3

#define M3_CHECK(cond, ...)               \
  do {                                    \
    if (!(cond)) ::m3::fail(__VA_ARGS__); \
  } while (0)

namespace m3 {

// Offsets [count + 1] must be 0 first, never fall, and end at `total`; returns the longest step.
template <class Int>
int64_t check_offsets(const char* name, const Int* offsets, int64_t count, int64_t total) {
  M3_CHECK(count >= 0 && offsets[0] == 0, name, ": expected a first entry of 0, found ",
           count < 0 ? "none" : std::to_string(offsets[0]));
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t step = int64_t{offsets[i + 1]} - offsets[i];
    M3_CHECK(step >= 0, name, ": expected ascending entries, found a fall after ", i);
    longest = std::max(longest, step);
  }
  M3_CHECK(offsets[count] == total, name, ": expected a last entry of ", total, ", found ",
           offsets[count]);
  return longest;
}

}  // namespace m3
