#include "lexical.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace m3 {
namespace {

constexpr int64_t TEXTS_PER_TASK = 16;
constexpr int64_t DOCS_PER_TASK = 16;  // columns written together: one cache line of a row

// Numbers distinct ids 0, 1, 2, ... in the order they come: open addressing, at most half full.
class IdMap {
 public:
  // Empties the map and makes room for `most` ids.
  void reset(int64_t most) {
    int bits = 3;
    while ((int64_t{1} << bits) < 2 * most) ++bits;
    shift_ = 32 - bits;
    slots_.assign(size_t{1} << bits, Slot{0, -1});
    count_ = 0;
  }
  // The number of `id`; a new id gets the next one.
  int32_t insert(int32_t id) {
    Slot& slot = find_slot(id);
    if (slot.number < 0) slot = {id, count_++};
    return slot.number;
  }
  // The number of `id`, -1 if it has none.
  int32_t find(int32_t id) { return find_slot(id).number; }
  int32_t size() const { return count_; }

 private:
  struct Slot {
    int32_t id, number;
  };
  Slot& find_slot(int32_t id) {
    size_t at = static_cast<uint32_t>(id) * 2654435769u >> shift_;  // Fibonacci hashing
    while (slots_[at].number >= 0 && slots_[at].id != id) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }
  std::vector<Slot> slots_;
  int shift_ = 0;
  int32_t count_ = 0;
};

}  // namespace

RaggedRows sparse_rows(const int32_t* ids, const float* weights, const int32_t* cu_seqlens,
                       int64_t texts, std::vector<int32_t> dropped, int threads) {
  std::sort(dropped.begin(), dropped.end());
  const int64_t tokens = cu_seqlens[texts];
  RaggedRows rows{std::vector<int32_t>(texts), std::vector<int32_t>(tokens),
                  std::vector<float>(tokens)};
  parallel_for((texts + TEXTS_PER_TASK - 1) / TEXTS_PER_TASK, threads, [&](Tasks& tasks) {
    IdMap seen;
    for (int64_t task; tasks.next(task);) {
      const int64_t last = std::min(texts, (task + 1) * TEXTS_PER_TASK);
      for (int64_t i = task * TEXTS_PER_TASK; i < last; ++i) {
        const int32_t start = cu_seqlens[i], end = cu_seqlens[i + 1];
        seen.reset(end - start);
        for (int32_t t = start; t < end; ++t) {
          // A NaN must not be left out in silence: it is the greatest weight there is.
          const float weight = weights[t] == weights[t] ? weights[t] : INFINITY;
          if (!(weight > 0)) continue;
          if (std::binary_search(dropped.begin(), dropped.end(), ids[t])) continue;
          const int32_t known = seen.size(), at = seen.insert(ids[t]);
          float& value = rows.values[start + at];
          value = at == known ? weight : std::max(value, weight);
          rows.ids[start + at] = ids[t];
        }
        rows.counts[i] = seen.size();
      }
    }
  });
  return rows;
}

void lexical_scores(const Csr& queries, const Csr& docs, float* out, int threads) {
  // Queries inverted: entries of id number k are begin[k] .. begin[k + 1], in the order of queries.
  const int64_t entries = queries.indptr[queries.rows];
  IdMap numbers;
  numbers.reset(entries);
  std::vector<int32_t> number(entries);
  for (int64_t e = 0; e < entries; ++e) number[e] = numbers.insert(queries.indices[e]);
  std::vector<int64_t> begin(numbers.size() + 1), next(numbers.size());
  for (int32_t n : number) ++begin[n + 1];
  for (int32_t n = 0; n < numbers.size(); ++n) begin[n + 1] += begin[n];
  std::copy(begin.begin(), begin.end() - 1, next.begin());
  struct Entry {
    int64_t query;
    float value;
  };
  std::vector<Entry> inverted(entries);
  for (int64_t q = 0; q < queries.rows; ++q)
    for (int64_t e = queries.indptr[q]; e < queries.indptr[q + 1]; ++e)
      inverted[next[number[e]]++] = {q, queries.values[e]};

  const int64_t blocks = (docs.rows + DOCS_PER_TASK - 1) / DOCS_PER_TASK;
  parallel_for(blocks, threads, [&](Tasks& tasks) {
    std::vector<double> sums(queries.rows * DOCS_PER_TASK);
    for (int64_t task; tasks.next(task);) {
      const int64_t first = task * DOCS_PER_TASK, last = std::min(docs.rows, first + DOCS_PER_TASK);
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t d = first; d < last; ++d)
        for (int64_t e = docs.indptr[d]; e < docs.indptr[d + 1]; ++e) {
          const int32_t n = numbers.find(docs.indices[e]);
          if (n < 0) continue;
          for (int64_t at = begin[n]; at < begin[n + 1]; ++at)
            sums[inverted[at].query * DOCS_PER_TASK + d - first] +=
                double{inverted[at].value} * docs.values[e];
        }
      for (int64_t q = 0; q < queries.rows; ++q)
        for (int64_t d = first; d < last; ++d)
          out[q * docs.rows + d] = static_cast<float>(sums[q * DOCS_PER_TASK + d - first]);
    }
  });
}

void lexical_pairs(const Csr& queries, const Csr& docs, const int64_t* pairs, int64_t count,
                   float* out, int threads) {
  parallel_for((count + TEXTS_PER_TASK - 1) / TEXTS_PER_TASK, threads, [&](Tasks& tasks) {
    IdMap numbers;
    std::vector<double> weights;
    int64_t held = -1;  // the query now in the map: neighbours in the list often share one
    for (int64_t task; tasks.next(task);) {
      const int64_t last = std::min(count, (task + 1) * TEXTS_PER_TASK);
      for (int64_t p = task * TEXTS_PER_TASK; p < last; ++p) {
        const int64_t q = pairs[2 * p], d = pairs[2 * p + 1];
        if (q != held) {
          const int64_t start = queries.indptr[q], end = queries.indptr[q + 1];
          numbers.reset(end - start);
          weights.assign(end - start, 0.0);
          for (int64_t e = start; e < end; ++e)
            weights[numbers.insert(queries.indices[e])] += queries.values[e];
          held = q;
        }
        double sum = 0;
        for (int64_t e = docs.indptr[d]; e < docs.indptr[d + 1]; ++e) {
          const int32_t n = numbers.find(docs.indices[e]);
          if (n >= 0) sum += weights[n] * docs.values[e];
        }
        out[p] = static_cast<float>(sum);
      }
    }
  });
}

}  // namespace m3
