// M3_CHECK(cond, parts...): throws std::invalid_argument made of the parts, shown as ValueError.
#pragma once
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

#define M3_CHECK(cond, ...)              \
  do {                                   \
    if (!(cond)) ::m3::fail(__VA_ARGS__); \
  } while (0)
