// The Python module m3fast._C, and its functions of ragged data, which come and go as numpy arrays.
// Work is done without the GIL.
#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>

#include "check.h"
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

// `value` as the array that it must be already.
template <class T>
Array<T> array_of(const char* name, const char* dtype, py::handle value) {
  if (!Array<T>::check_(value) || py::reinterpret_borrow<py::array>(value).ndim() != 1) {
    const py::object found = py::getattr(value, "dtype", py::type::handle_of(value));
    throw py::type_error(std::string(name) + ": expected a contiguous numpy array of " + dtype +
                         ", found " + std::string(py::str(found)));
  }
  return py::reinterpret_borrow<Array<T>>(value);
}

// Of tuples (ids, offsets, order), which hold the arrays that these point into.
std::vector<Part> parts_of(const py::tuple& parts) {
  std::vector<Part> found;
  for (py::handle part : parts) {
    if (!py::isinstance<py::tuple>(part) || py::len(part) != 3)
      throw py::type_error("parts: expected tuples (ids, offsets, order)");
    const auto its = py::reinterpret_borrow<py::tuple>(part);
    const auto ids = array_of<int32_t>("ids", "int32", its[0]);
    const auto offsets = array_of<int64_t>("offsets", "int64", its[1]);
    const auto order = array_of<int64_t>("order", "int64", its[2]);
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
  const PackRoom room{ids.mutable_data(),
                      positions.mutable_data(),
                      owners.mutable_data(),
                      cu_seqlens.mutable_data(),
                      ids.size(),
                      cu_seqlens.size() - 1};
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
  M3_CHECK(indptr.size() == int64_t(rows.size()) + 1, "indptr: expected ", rows.size() + 1,
           " entries, found ", indptr.size());
  check_offsets("indptr", ends, rows.size(), values.size());
  M3_CHECK(indices.size() == int64_t(values.size()), "indices: expected ", values.size(),
           " entries, found ", indices.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    PyObject* row = PyList_GET_ITEM(rows.ptr(), i);
    M3_CHECK(PyDict_Check(row), "rows: expected dicts, found ", Py_TYPE(row)->tp_name);
    for (int64_t k = ends[i]; k < ends[i + 1]; ++k) {
      M3_CHECK(ids[k] >= 0 && ids[k] < n_names, "indices: expected 0 to ", n_names - 1,
               ", found ", ids[k]);
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
  define_operations(m);
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
}
