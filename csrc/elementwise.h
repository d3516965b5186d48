// bias + GELU, and LayerNorm with the sum or the lookup before it: passes over a row in cache.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace m3::M3_ISA {

// One task is about this many elements: small enough to share out, far above the cost of a task.
constexpr int64_t TASK_ELEMENTS = 1 << 15;

// body(first, last) over blocks of rows.
template <class Body>
void over_rows(int64_t rows, int64_t cols, int threads, Body body) {
  const int64_t block = std::max<int64_t>(1, TASK_ELEMENTS / std::max<int64_t>(1, cols));
  parallel_for((rows + block - 1) / block, threads, [&](Tasks& tasks) {
    for (int64_t t; tasks.next(t);) body(t * block, std::min(rows, (t + 1) * block));
  });
}

// y·Phi(y) = max(y, 0) - a·Phi(-a) with a = |y|, and Phi(-a) = 2^g(a). g is a polynomial fitted on
// [0, 8.5] by linear programming, g(0) = -1 exact: within 1.3e-7·max(1, |y|) of the true value, and
// 2e-5 of it in the negative tail. Beyond 8.5 the tail is below 1e-16 and is kept as it is there.
M3_INLINE vf gelu(vf y) {
  const vf a = min((vf)((vu)y & 0x7fffffff), splat(8.5f));
  const vf aa = a * a;
  vf odd = 1.9252879512743255e-07f * aa + 2.7974546345509036e-05f;
  odd = odd * aa + -0.0003986839536177323f;
  odd = odd * aa + -0.05280756428491841f;
  odd = odd * aa + -1.15111810404335f;
  vf even = -4.695065580119688e-09f * aa + -3.2567908521989458e-06f;
  even = even * aa + -0.00010002030718140104f;
  even = even * aa + 0.007463934531238146f;
  even = even * aa + -0.45909772270814475f;
  even = even * aa + -1.f;
  return max(vf{}, y) - a * exp2(odd * a + even);
}

template <class T>
void bias_gelu(Matrix x, Span<float> bias, int threads) {
  const int64_t cols = x.cols;
  over_rows(x.rows, cols, threads, [=](int64_t first, int64_t last) {
    for (T* row = as<T>(x) + first * cols; row < as<T>(x) + last * cols; row += cols)
      sweep(cols, [=](int64_t c, int64_t n) M3_LAMBDA_INLINE {
        store(row + c, gelu(load(row + c, n) + load(bias.data + c, n)), n);
      });
  });
}

struct LayerNorm {
  const float *weight, *shift;  // [cols]
  float eps;
  int64_t cols;
};

// Writes LN of the row whose element block [c, c + n) is value(c, n) to out; y is scratch [cols].
// The variance is that of the centred row: one pass over E[y²] would lose digits. With KEEP the result
// without `shift` is left in y.
template <bool KEEP = false, class T, class Value>
M3_INLINE void layernorm_row(const LayerNorm& ln, float* y, T* out, Value value) {
  vf total{};
  sweep(ln.cols, [&](int64_t c, int64_t n) M3_LAMBDA_INLINE {
    const vf v = value(c, n);
    total += v;  // lanes past the end are 0
    store(y + c, v, n);
  });
  const float mean = sum(total) / ln.cols;
  vf squares{};
  float squares_left = 0;
  sweep(ln.cols, [&](int64_t c, int64_t n) M3_LAMBDA_INLINE {
    const vf d = load(y + c, n) - mean;
    if (n == VL)
      squares += d * d;
    else
      for (int64_t i = 0; i < n; ++i) squares_left += d[i] * d[i];
  });
  const float scale = 1 / std::sqrt((sum(squares) + squares_left) / ln.cols + ln.eps);
  sweep(ln.cols, [&](int64_t c, int64_t n) M3_LAMBDA_INLINE {
    const vf d = load(y + c, n) - mean;
    const vf normal = d * scale * load(ln.weight + c, n);
    store(out + c, normal + load(ln.shift + c, n), n);
    if constexpr (KEEP) store(y + c, normal, n);
  });
}

template <class T>
void add_layernorm(Matrix x, Matrix residual, Span<float> bias, Span<float> weight,
                   Span<float> shift, float eps, Matrix out, int threads) {
  const LayerNorm ln{weight.data, shift.data, eps, x.cols};
  over_rows(x.rows, ln.cols, threads, [&](int64_t first, int64_t last) {
    Buffer y(ln.cols);
    for (int64_t r = first; r < last; ++r) {
      const T *a = as<T>(x) + r * ln.cols, *b = as<T>(residual) + r * ln.cols;
      T* to = as<T>(out) + r * ln.cols;
      if (const float* more = bias.data)
        layernorm_row(ln, y, to, [=](int64_t c, int64_t n) M3_LAMBDA_INLINE {
          return load(a + c, n) + load(more + c, n) + load(b + c, n);
        });
      else
        layernorm_row(ln, y, to, [=](int64_t c, int64_t n) M3_LAMBDA_INLINE {
          return load(a + c, n) + load(b + c, n);
        });
    }
  });
}

template <class T>
void embed_layernorm(Span<int32_t> ids, Span<int32_t> positions, Matrix word, Matrix position,
                     Span<float> type_row, Span<float> weight, Span<float> shift, float eps,
                     Matrix out, int threads) {
  const LayerNorm ln{weight.data, shift.data, eps, out.cols};
  over_rows(out.rows, ln.cols, threads, [&](int64_t first, int64_t last) {
    Buffer y(ln.cols);
    for (int64_t r = first; r < last; ++r) {
      const T* w = as<T>(word) + ids.data[r] * ln.cols;
      const T* p = as<T>(position) + positions.data[r] * ln.cols;
      const float* type = type_row.data;
      layernorm_row(ln, y, as<T>(out) + r * ln.cols, [=](int64_t c, int64_t n) M3_LAMBDA_INLINE {
        return load(w + c, n) + load(p + c, n) + load(type + c, n);
      });
    }
  });
}

}  // namespace m3::M3_ISA
