// csrc/cuda/pad.cu for the CPU, as a library for ctypes.
#include "emulate.h"
#include "pad.cu"

using namespace m3::cuda;

namespace {

std::string message;

template <class Call>
const char* caught(Call&& call) {
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

void look_back_kernel(const uint64_t* words, int64_t row, int32_t* before) {
  const int lane = threadIdx.x;
  const int32_t found = look_back(words, row, lane);
  if (lane == 0) *before = found;
}

}  // namespace

extern "C" {

void set_seed(uint64_t seed) { emulate::seed = seed; }
int64_t words_read() { return emulate::words_read; }
void set_patience(int milliseconds) { emulate::patience = milliseconds; }

const char* emulated_unpad_ids(const void* ids, int id_bytes, const void* mask, int mask_bytes,
                               int64_t rows, int64_t width, int64_t capacity, bool has_pad,
                               int32_t pad_id, uint64_t* state, int32_t* out_ids,
                               int32_t* positions, int32_t* texts, int32_t* cu_seqlens,
                               int32_t* slots) {
  return caught([&] {
    unpad_ids({ids, id_bytes, mask, mask_bytes, rows, width, capacity, has_pad, pad_id, state,
               out_ids, positions, texts, cu_seqlens, slots},
              {});
  });
}

const char* emulated_look_back(const uint64_t* words, int64_t row, int32_t* before) {
  return caught([&] { launch("look_back", look_back_kernel, 1, 32, Stream{}, words, row, before); });
}

const char* emulated_gather_rows(const void* hidden, const int32_t* slots, void* packed,
                                 int64_t rows, int64_t tokens, int64_t row_bytes) {
  return caught([&] { gather_rows(hidden, slots, packed, rows, tokens, row_bytes, {}); });
}

const char* emulated_scatter_rows(const void* packed, const int32_t* slots, void* padded,
                                  int64_t rows, int64_t tokens, int64_t row_bytes) {
  return caught([&] { scatter_rows(packed, slots, padded, rows, tokens, row_bytes, {}); });
}

}  // extern "C"
