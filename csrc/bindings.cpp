// The Python module m3fast._C; the only pybind11 file. Ragged data come and go as numpy arrays,
// tensors as addresses with sizes: kernels/*.py has checked them. Work is done without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "check.h"
#ifdef M3FAST_CUDA
#include "cuda/launch.h"
#endif
#include "kernels.h"
#include "lexical.h"
#include "pack.h"
#include "parallel.h"
#include "tiles.h"

namespace py = pybind11;
using namespace m3;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // never cast: arguments are declared noconvert

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// `value` as the array that it must be already.
template <class T>
Array<T> array_of(const char* name, const char* dtype, py::handle value) {
  if (!Array<T>::check_(value) || py::reinterpret_borrow<py::array>(value).ndim() != 1)
    throw py::type_error(std::string(name) + ": expected a contiguous numpy array of " + dtype +
                         ", found " + std::string(py::str(py::type::handle_of(value))));
  return py::reinterpret_borrow<Array<T>>(value);
}

// Of tuples (ids, offsets, order), which hold the arrays that these point into.
std::vector<Part> parts_of(const py::tuple& parts) {
  std::vector<Part> found;
  for (py::handle part : parts) {
    const auto its = py::cast<std::tuple<py::object, py::object, py::object>>(part);
    const auto ids = array_of<int32_t>("ids", "int32", std::get<0>(its));
    const auto offsets = array_of<int64_t>("offsets", "int64", std::get<1>(its));
    const auto order = array_of<int64_t>("order", "int64", std::get<2>(its));
    found.push_back({ids.data(), ids.size(), offsets.data(), offsets.size() - 1, order.data(),
                     order.size()});
  }
  return found;
}

py::tuple packed_size(const py::tuple& parts) {
  const std::vector<Part> texts = parts_of(parts);
  const PackSize size = pack_size(texts);
  return py::make_tuple(size.tokens, size.texts, size.longest);
}

py::tuple pack_parts(const py::tuple& parts, std::optional<int32_t> pad_id, int64_t vocab_size,
                     Array<int32_t> ids, Array<int32_t> positions, Array<int32_t> owners,
                     Array<int32_t> cu_seqlens) {
  const std::vector<Part> texts = parts_of(parts);
  M3_CHECK(ids.size() == positions.size() && ids.size() == owners.size() && cu_seqlens.size() > 0,
           "out: expected ids, positions and texts of one size, and cu_seqlens");
  const PackRoom room{ids.mutable_data(),    positions.mutable_data(), owners.mutable_data(),
                      cu_seqlens.mutable_data(), ids.size(),           cu_seqlens.size() - 1};
  PackSize size;
  {
    py::gil_scoped_release unlocked;
    size = pack(texts, pad_id, vocab_size, room);
  }
  return py::make_tuple(size.tokens, size.texts, size.longest);
}

Array<int32_t> to_attention_tiles(const Array<int32_t>& cu_seqlens, int32_t short_text,
                                  int32_t rows) {
  std::vector<Tile> tiles;
  const int64_t texts = cu_seqlens.size() - 1;
  const int32_t* ends = cu_seqlens.data();
  {
    py::gil_scoped_release unlocked;
    tiles = attention_tiles(ends, texts, short_text, rows);
  }
  Array<int32_t> out({int64_t(tiles.size()), int64_t{4}});
  static_assert(sizeof(Tile) == 4 * sizeof(int32_t));
  std::copy_n(tiles.data(), tiles.size(), reinterpret_cast<Tile*>(out.mutable_data()));
  return out;
}

py::tuple to_sparse_rows(const Array<int32_t>& ids, const Array<float>& weights,
                         const Array<int32_t>& cu_seqlens, std::vector<int32_t> dropped,
                         int threads) {
  const int64_t texts = cu_seqlens.size() - 1;
  const int32_t* starts = cu_seqlens.data();
  RaggedRows rows;
  Array<int64_t> indptr(texts + 1);
  int64_t* ends = indptr.mutable_data();
  {
    py::gil_scoped_release unlocked;
    rows = sparse_rows(ids.data(), weights.data(), starts, texts, std::move(dropped), threads);
    ends[0] = 0;
    for (int64_t i = 0; i < texts; ++i) ends[i + 1] = ends[i] + rows.counts[i];
  }
  Array<int32_t> indices(ends[texts]);
  Array<float> values(ends[texts]);
  for (int64_t i = 0; i < texts; ++i) {
    const size_t n = rows.counts[i];
    std::memcpy(indices.mutable_data() + ends[i], rows.ids.data() + starts[i], n * sizeof(int32_t));
    std::memcpy(values.mutable_data() + ends[i], rows.values.data() + starts[i], n * sizeof(float));
  }
  return py::make_tuple(indptr, indices, values);
}

// rows[i][names[indices[k]]] = values[k] for the entries k of row i: dict stores and nothing else.
void fill_dicts(const py::list& rows, const Array<int64_t>& indptr, const Array<int32_t>& indices,
                const py::list& names, const py::list& values) {
  const int64_t *ends = indptr.data(), n_names = names.size();
  const int32_t* ids = indices.data();
  M3_CHECK(indptr.size() == int64_t(rows.size()) + 1, "indptr: ", rows.size() + 1,
           " entries were expected, got ", indptr.size());
  check_offsets("indptr", ends, rows.size(), values.size());
  M3_CHECK(indices.size() == int64_t(values.size()), "indices: ", values.size(),
           " entries were expected, got ", indices.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    PyObject* row = PyList_GET_ITEM(rows.ptr(), i);
    M3_CHECK(PyDict_Check(row), "rows: dicts were expected");
    for (int64_t k = ends[i]; k < ends[i + 1]; ++k) {
      M3_CHECK(ids[k] >= 0 && ids[k] < n_names, "indices: 0 to ", n_names - 1,
               " was expected, got ", ids[k]);
      if (PyDict_SetItem(row, PyList_GET_ITEM(names.ptr(), ids[k]),
                         PyList_GET_ITEM(values.ptr(), k)))
        throw py::error_already_set();
    }
  }
}

using Rows = std::tuple<Array<int64_t>, Array<int32_t>, Array<float>>;

Csr view(const Rows& rows) {
  const auto& [indptr, indices, values] = rows;
  return {indptr.data(), indices.data(), values.data(), indptr.size() - 1};
}

Array<float> all_lexical_scores(const Rows& queries, const Rows& docs, int threads) {
  const Csr q = view(queries), d = view(docs);
  Array<float> out({q.rows, d.rows});
  float* to = out.mutable_data();
  {
    py::gil_scoped_release unlocked;
    lexical_scores(q, d, to, threads);
  }
  return out;
}

Array<float> paired_lexical_scores(const Rows& queries, const Rows& docs,
                                   const Array<int64_t>& pairs, int threads) {
  const int64_t count = pairs.shape(0);
  Array<float> out(count);
  float* to = out.mutable_data();
  const Csr q = view(queries), d = view(docs);
  {
    py::gil_scoped_release unlocked;
    lexical_pairs(q, d, pairs.data(), count, to, threads);
  }
  return out;
}

#ifdef M3FAST_CUDA
// Tensors as addresses of device memory, streams as torch's `stream.cuda_stream`.
void define_cuda(py::module_& m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def(
      "unpad_ids",
      [](uintptr_t ids, int id_bytes, uintptr_t mask, int mask_bytes, int64_t rows, int64_t width,
         int64_t capacity, std::optional<int32_t> pad_id, uintptr_t state, uintptr_t out_ids,
         uintptr_t positions, uintptr_t texts, uintptr_t cu_seqlens, uintptr_t slots, int device,
         uintptr_t stream) {
        cuda::unpad_ids({at<void>(ids), id_bytes, at<void>(mask), mask_bytes, rows, width, capacity,
                         pad_id.has_value(), pad_id.value_or(0), at<uint64_t>(state),
                         at<int32_t>(out_ids), at<int32_t>(positions), at<int32_t>(texts),
                         at<int32_t>(cu_seqlens), at<int32_t>(slots)},
                        {device, at<void>(stream)});
      },
      unlocked);
  const auto define_copy = [&](const char* name, auto* copy) {
    m.def(
        name,
        [copy](uintptr_t from, uintptr_t slots, uintptr_t to, int64_t rows, int64_t tokens,
               int64_t row_bytes, int device, uintptr_t stream) {
          copy(at<void>(from), at<int32_t>(slots), at<void>(to), rows, tokens, row_bytes,
               {device, at<void>(stream)});
        },
        unlocked);
  };
  define_copy("gather_rows", cuda::gather_rows);
  define_copy("scatter_rows", cuda::scatter_rows);
}
#endif

void check_linear(const Kernels& k, int64_t depth, int dtype) {
  const bool f32 = Dtype(dtype) == Dtype::f32;
  M3_CHECK(f32 || (Dtype(dtype) == Dtype::bf16 && k.multiplies_bf16), "dtype: one that ", k.name,
           " multiplies was expected, got ", dtype);
  M3_CHECK(depth > 0 && (f32 || depth % 2 == 0), "depth: ", f32 ? "" : "an even number ",
           "above 0 was expected, got ", depth);
}

std::vector<std::string> cpu_paths() {
  std::vector<std::string> names;
  for (const Kernels* k : runnable_kernels()) names.push_back(k->name);
  return names;
}

std::string cpu_path(const std::optional<std::string>& use) {
  if (use) use_kernels(use->c_str());
  return kernels().name;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
#ifdef M3FAST_CUDA
  m.attr("has_cuda") = true;
  define_cuda(m);
#else
  m.attr("has_cuda") = false;
#endif
  m.def("cpu_paths", cpu_paths, "Instruction sets that this build has and this processor runs");
  m.def("cpu_path", cpu_path, py::arg("use") = py::none(),
        "The one in use, the first of `cpu_paths` unless told; `use` says which from now on");
  m.def("has_team", has_team, "Whether torch's OpenMP team was found");

  m.def("packed_size", packed_size, py::arg("parts"));
  m.def("pack", pack_parts, py::arg("parts"), py::arg("pad_id"), py::arg("vocab_size"),
        py::arg("ids").noconvert(), py::arg("positions").noconvert(), py::arg("texts").noconvert(),
        py::arg("cu_seqlens").noconvert());
  m.def("attention_tiles", to_attention_tiles, py::arg("cu_seqlens").noconvert(), py::arg("short"),
        py::arg("rows"));
  m.def("sparse_rows", to_sparse_rows, py::arg("ids").noconvert(), py::arg("weights").noconvert(),
        py::arg("cu_seqlens").noconvert(), py::arg("dropped"), py::arg("threads"));
  m.def("fill_dicts", fill_dicts, py::arg("rows"), py::arg("indptr").noconvert(),
        py::arg("indices").noconvert(), py::arg("names"), py::arg("values"));
  m.def("lexical_scores", all_lexical_scores, py::arg("queries"), py::arg("docs"),
        py::arg("threads"));
  m.def("lexical_pairs", paired_lexical_scores, py::arg("queries"), py::arg("docs"),
        py::arg("pairs").noconvert(), py::arg("threads"));

  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def(
      "bias_gelu",
      [](uintptr_t x, uintptr_t bias, int64_t rows, int64_t cols, int dtype, int threads) {
        kernels().bias_gelu(at<void>(x), at<float>(bias), rows, cols, Dtype(dtype), threads);
      },
      unlocked);
  m.def(
      "add_layernorm",
      [](uintptr_t x, uintptr_t residual, uintptr_t bias, uintptr_t weight, uintptr_t shift,
         float eps, uintptr_t out, int64_t rows, int64_t cols, int dtype, int threads) {
        kernels().add_layernorm(at<void>(x), at<void>(residual), at<float>(bias),
                                {at<float>(weight), at<float>(shift), eps, cols}, at<void>(out),
                                rows, Dtype(dtype), threads);
      },
      unlocked);
  m.def(
      "embed_layernorm",
      [](uintptr_t ids, uintptr_t positions, uintptr_t word, uintptr_t position, uintptr_t type_row,
         uintptr_t weight, uintptr_t shift, float eps, uintptr_t out, int64_t rows, int64_t cols,
         int dtype, int threads) {
        kernels().embed_layernorm(at<int32_t>(ids), at<int32_t>(positions), at<void>(word),
                                  at<void>(position), at<float>(type_row),
                                  {at<float>(weight), at<float>(shift), eps, cols}, at<void>(out),
                                  rows, Dtype(dtype), threads);
      },
      unlocked);
  m.def(
      "attention",
      [](uintptr_t qkv, uintptr_t cu_seqlens, int64_t texts, int64_t tokens, int64_t max_seqlen,
         int64_t heads, int64_t dim, float scale, uintptr_t out, int dtype, int threads) {
        const int64_t longest = check_offsets("cu_seqlens", at<int32_t>(cu_seqlens), texts, tokens);
        M3_CHECK(longest == max_seqlen, "max_seqlen: ", longest,
                 " was expected from cu_seqlens, got ", max_seqlen);
        kernels().attention(at<void>(qkv), at<int32_t>(cu_seqlens), texts, heads, dim, scale,
                            at<void>(out), Dtype(dtype), threads);
      },
      unlocked);
  m.def(
      "linear",
      [](uintptr_t x, uintptr_t packed, int panel, uintptr_t bias, bool gelu, uintptr_t y,
         int64_t rows, int64_t depth, int64_t outs, int dtype, int threads) {
        const Kernels& k = kernels();
        M3_CHECK(panel == k.panel, "weight: panels of ", k.panel, " outputs were expected, got ",
                 panel, ": packed for other instructions");
        check_linear(k, depth, dtype);
        k.linear(at<void>(x), at<void>(packed), at<float>(bias), gelu, at<void>(y), rows, depth,
                 outs, Dtype(dtype), threads);
      },
      unlocked);
  m.def(
      "pack_weight",
      [](uintptr_t weight, int64_t outs, int64_t depth, uintptr_t packed, int dtype, int threads) {
        const Kernels& k = kernels();
        check_linear(k, depth, dtype);
        k.pack_weight(at<void>(weight), outs, depth, at<void>(packed), Dtype(dtype), threads);
      },
      unlocked);
  m.def(
      "linear_panel", [] { return kernels().panel; }, "Outputs of a panel of packed weights");
  m.def(
      "multiplies_bf16", [] { return kernels().multiplies_bf16; },
      "Whether `linear` takes bf16 too");
  m.def(
      "maxsim",
      [](uintptr_t queries, uintptr_t q_offsets, int64_t n_queries, uintptr_t docs,
         uintptr_t d_offsets, int64_t n_docs, int64_t dim, uintptr_t out, int dtype, int threads) {
        kernels().maxsim(at<float>(queries), at<int64_t>(q_offsets), n_queries, at<void>(docs),
                         at<int64_t>(d_offsets), n_docs, dim, at<float>(out), Dtype(dtype),
                         threads);
      },
      unlocked);
  m.def(
      "maxsim_pairs",
      [](uintptr_t queries, uintptr_t q_offsets, uintptr_t docs, uintptr_t d_offsets,
         uintptr_t pairs, int64_t n_pairs, int64_t dim, uintptr_t out, int dtype, int threads) {
        kernels().maxsim_pairs(at<float>(queries), at<int64_t>(q_offsets), at<void>(docs),
                               at<int64_t>(d_offsets), at<int64_t>(pairs), n_pairs, dim,
                               at<float>(out), Dtype(dtype), threads);
      },
      unlocked);
}
