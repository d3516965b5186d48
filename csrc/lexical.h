// Lexical weights: token weights -> CSR rows, and dot products of CSR rows.
#pragma once
#include <cstdint>
#include <vector>

namespace m3 {

// Rows under construction: row i is the first counts[i] entries from cu_seqlens[i] on.
struct RaggedRows {
  std::vector<int32_t> counts, ids;
  std::vector<float> values;
};

// Per text the maximum of the weights > 0 of each id not in `dropped`, in the order of the first
// such weight; a NaN counts as infinity. O(tokens).
RaggedRows sparse_rows(const int32_t* ids, const float* weights, const int32_t* cu_seqlens,
                       int64_t texts, std::vector<int32_t> dropped, int threads);

struct Csr {
  const int64_t* indptr;  // [rows + 1]
  const int32_t* indices;
  const float* values;
  int64_t rows;
};

// out [queries.rows, docs.rows]: products of all pairs of rows, summed in double.
void lexical_scores(const Csr& queries, const Csr& docs, float* out, int threads);

// out [count]: products of pairs [count, 2] of (query row, document row).
void lexical_pairs(const Csr& queries, const Csr& docs, const int64_t* pairs, int64_t count,
                   float* out, int threads);

}  // namespace m3
