// The CUDA kernels' launchers: pointers to device memory, sizes, a stream. They do not wait for the
// device, and throw std::runtime_error with the kernel's name where a launch fails.
#pragma once
#include <cstdint>

namespace m3::cuda {

struct Stream {
  int device;
  void* handle;  // cudaStream_t
};

// Padded token ids [rows, width] with a mask -> packed tokens, in one launch.
struct UnpadIds {
  const void* ids;
  int id_bytes;  // 4 or 8
  const void* mask;
  int mask_bytes;  // 1, 4 or 8; other than 0 is a token
  int64_t rows, width;
  int64_t capacity;  // of out_ids, positions and texts; at most rows * width
  bool has_pad;      // XLM-R's positions, with this pad_id; else they are the columns
  int32_t pad_id;
  uint64_t* state;  // [rows + 2], 0 before and after
  int32_t *out_ids, *positions, *texts;
  int32_t* cu_seqlens;  // [rows + 1]
  int32_t* slots;       // [rows, width]: packed row; -1: none; -2 - d: none, and row d is a dummy
};
void unpad_ids(const UnpadIds&, const Stream&);

// hidden [rows, row_bytes] -> packed [tokens, row_bytes], dummy rows zero; slots [rows].
void gather_rows(const void* hidden, const int32_t* slots, void* packed, int64_t rows,
                 int64_t tokens, int64_t row_bytes, const Stream&);

// packed [tokens, row_bytes] -> padded [rows, row_bytes], zero where a slot is negative.
void scatter_rows(const void* packed, const int32_t* slots, void* padded, int64_t rows,
                  int64_t tokens, int64_t row_bytes, const Stream&);

}  // namespace m3::cuda
