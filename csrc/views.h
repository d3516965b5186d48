// What crosses from Python to the operations: where a contiguous tensor or array lies, how large.
// Plain data without functions, so that files for different instructions share no code.
#pragma once
#include <cstdint>

namespace m3 {

enum class Dtype : int { f32, bf16, f16, other };

// [..., cols] of any dtype, all dimensions but the last as rows; a vector is one row.
struct Matrix {
  void* data;
  int64_t rows, cols;
  Dtype dtype;
  int item_bytes;
};

// All entries of T in order.
template <class T>
struct Span {
  const T* data;  // null: none was given
  int64_t size;
};

// What columns and rows in eight bits are padded to a multiple of: AMX reads so many at a time.
constexpr int64_t INT8_STEP = 64, INT8_ROWS = 16;

}  // namespace m3
