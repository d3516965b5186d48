// A few random batches there and back under a sanitizer; the exit status says whether all was well.
#include <cstdio>

#include "pad_emulated.cpp"

int main(int, char** argv) {
  std::mt19937_64 random(std::stoull(argv[1]));
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
  for (int batch = 0; batch < 6; ++batch) {
    const bool tall = batch % 2;
    const int64_t rows = 1 + below(tall ? 70 : 4), width = 1 + below(tall ? 30 : 700), n = rows * width;
    std::vector<int64_t> ids(n), mask(n);
    for (auto& id : ids) id = below(9);
    for (auto& there : mask) there = below(3);
    const int64_t tokens = std::count_if(mask.begin(), mask.end(), [](auto m) { return m != 0; });
    const int64_t capacity = tokens + below(n - tokens + 1);
    std::vector<uint64_t> state(rows + 2);
    std::vector<int32_t> out[3], cu_seqlens(rows + 1), slots(n);
    for (auto& part : out) part.resize(capacity);
    for (int again = 0; again < 2; ++again)  // the state must be ready for it
      if (const char* error = emulated_unpad_ids(
              ids.data(), 8, mask.data(), 8, rows, width, capacity, true, 1, state.data(),
              out[0].data(), out[1].data(), out[2].data(), cu_seqlens.data(), slots.data()))
        return std::puts(error), 1;
    if (cu_seqlens[rows] != tokens) return std::puts("cu_seqlens"), 1;

    const int64_t row_bytes = 1 + below(100) * (batch % 3 ? 4 : 16);
    // At any address: loads and stores must be as narrow as it asks for.
    std::vector<char> from(n * row_bytes + 4, 7), through(capacity * row_bytes + 4, 9),
        to(n * row_bytes + 4);
    const auto at = [&](auto& bytes) { return bytes.data() + 2 * below(3); };
    char *hidden = at(from), *packed = at(through), *padded = at(to);
    if (const char* error =
            emulated_gather_rows(hidden, slots.data(), packed, n, capacity, row_bytes))
      return std::puts(error), 1;
    if (const char* error =
            emulated_scatter_rows(packed, slots.data(), padded, n, capacity, row_bytes))
      return std::puts(error), 1;
    for (int64_t i = 0; i < n; ++i)
      if (padded[i * row_bytes] != (mask[i] ? 7 : 0)) return std::puts("rows"), 1;
  }
  return 0;
}
