// The operations on torch's tensors, bound to Python; tensors are read and written where they lie.
// kernels/*.py has checked that they are contiguous and fit each other. No work holds the GIL.
#include "bindings.h"

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "check.h"
#ifdef M3FAST_CUDA
#include "cuda/launch.h"
#endif
#include "kernels.h"

namespace py = pybind11;

namespace m3 {
namespace {

// Names and dtypes that tensors are read by, without torch's headers; looked up once.
struct Torch {
  py::str data_ptr = name("data_ptr"), numel = name("numel"), shape = name("shape");
  py::str dtype = name("dtype"), itemsize = name("itemsize");
  py::module_ torch = py::module_::import("torch");
  py::object f32 = torch.attr("float32"), bf16 = torch.attr("bfloat16"),
             f16 = torch.attr("float16"), i32 = torch.attr("int32"), i64 = torch.attr("int64");

  static py::str name(const char* text) {
    return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(text));
  }
  static const Torch& get() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> once;
    return once.call_once_and_store_result([] { return Torch{}; }).get_stored();
  }
};

py::object checked(PyObject* found) {
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}
py::object attribute(py::handle of, const py::str& name) {
  return checked(PyObject_GetAttr(of.ptr(), name.ptr()));
}
py::object call(py::handle of, const py::str& name) {
  return checked(PyObject_CallMethodNoArgs(of.ptr(), name.ptr()));
}
void* address(py::handle tensor) {
  return PyLong_AsVoidPtr(call(tensor, Torch::get().data_ptr).ptr());
}

bool read(py::handle tensor, Matrix& to) {
  const Torch& torch = Torch::get();
  to.data = address(tensor);
  const auto dtype = attribute(tensor, torch.dtype);
  if (dtype.is(torch.f32))
    to.dtype = Dtype::f32, to.item_bytes = 4;
  else if (dtype.is(torch.bf16))
    to.dtype = Dtype::bf16, to.item_bytes = 2;
  else if (dtype.is(torch.f16))
    to.dtype = Dtype::f16, to.item_bytes = 2;
  else
    to.dtype = Dtype::other, to.item_bytes = attribute(dtype, torch.itemsize).cast<int>();
  const auto shape = attribute(tensor, torch.shape);
  const Py_ssize_t dims = PyTuple_GET_SIZE(shape.ptr());
  to.rows = to.cols = 1;
  for (Py_ssize_t i = 0; i < dims; ++i)
    (i + 1 < dims ? to.rows : to.cols) *= PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
  return true;
}

template <class T>
bool read(py::handle from, Span<T>& to) {
  to = {nullptr, 0};
  if (from.is_none()) return true;
  if (py::isinstance<py::array>(from)) {
    if (!py::array_t<T, py::array::c_style>::check_(from)) return false;
    const auto array = py::reinterpret_borrow<py::array>(from);
    to = {static_cast<const T*>(array.data()), array.size()};
    return true;
  }
  const Torch& torch = Torch::get();
  const bool real = std::is_same_v<T, float>;
  const py::object& dtype = real ? torch.f32 : sizeof(T) == 4 ? torch.i32 : torch.i64;
  if (!attribute(from, torch.dtype).is(dtype)) return false;
  to = {static_cast<const T*>(address(from)), PyLong_AsLongLong(call(from, torch.numel).ptr())};
  return true;
}

}  // namespace
}  // namespace m3

namespace pybind11::detail {

template <>
struct type_caster<m3::Matrix> {
  PYBIND11_TYPE_CASTER(m3::Matrix, const_name("torch.Tensor"));
  bool load(handle from, bool) { return m3::read(from, value); }
};

template <class T>
struct type_caster<m3::Span<T>> {
  PYBIND11_TYPE_CASTER(m3::Span<T>, const_name("torch.Tensor | numpy.ndarray | None"));
  bool load(handle from, bool) { return m3::read(from, value); }
};

}  // namespace pybind11::detail

namespace m3 {
namespace {

// Arguments as the operation's declaration in kernels.h has them; `check` sees them first.
template <class... Args, class Check>
void define(py::module_& m, const char* name, void (*Kernels::*op)(Args...), Check check) {
  m.def(
      name,
      [op, check](Args... args) {
        const Kernels& k = kernels();
        check(k, args...);
        (k.*op)(args...);
      },
      py::call_guard<py::gil_scoped_release>());
}

template <class... Args>
void define(py::module_& m, const char* name, void (*Kernels::*op)(Args...)) {
  define(m, name, op, [](const Kernels&, const Args&...) {});
}

void check_linear(const Kernels& k, const Matrix& x) {
  const bool f32 = x.dtype == Dtype::f32;
  M3_CHECK(f32 || (x.dtype == Dtype::bf16 && k.multiplies_bf16), "dtype: expected one that ",
           k.name, " multiplies, found ", x.item_bytes, " bytes each");
  M3_CHECK(x.cols > 0 && (f32 || x.cols % 2 == 0), "depth: expected ", f32 ? "" : "an even number ",
           "above 0, found ", x.cols);
}

// The rows of q, or an error where weight and rows do not fit each other.
int64_t check_int8(const Kernels& k, const Matrix& q, const Matrix& scales, const Matrix& packed,
                   int panel, const Span<float>& scale, const Span<float>& sums) {
  M3_CHECK(panel == k.int8_panel, "weight: expected panels of ", k.int8_panel, " outputs, found ",
           panel, ": packed for other instructions");
  const int64_t depth = packed.cols / std::max<int64_t>(scale.size, 1);
  const int64_t groups = (depth + k.int8_group - 1) / k.int8_group;
  M3_CHECK(scale.size % panel == 0 && depth % INT8_STEP == 0 && sums.size == groups * scale.size,
           "weight: expected sums of ", groups, " groups for each of its outputs, found ", sums.size,
           " for ", scale.size, ": packed for other instructions");
  const int64_t made = scales.rows * scales.cols, rows = groups ? made / (2 * groups) : q.rows;
  M3_CHECK(depth <= q.cols && q.rows % INT8_ROWS == 0 && rows * 2 * groups == made &&
               rows <= q.rows,
           "rows: expected ", groups, " scales each and ", depth, " bytes, found ", made,
           " numbers for ", q.rows, " rows of ", q.cols);
  return rows;
}

#ifdef M3FAST_CUDA
// Streams as torch's `stream.cuda_stream`.
cuda::Stream stream_of(int device, uintptr_t stream) {
  return {device, reinterpret_cast<void*>(stream)};
}

void unpad_ids(Matrix ids, Matrix mask, std::optional<int32_t> pad_id, Matrix state, Matrix out_ids,
               Matrix positions, Matrix texts, Matrix cu_seqlens, Matrix slots, int device,
               uintptr_t stream) {
  const auto ints = [](const Matrix& x) { return static_cast<int32_t*>(x.data); };
  cuda::unpad_ids({ids.data, ids.item_bytes, mask.data, mask.item_bytes, ids.rows, ids.cols,
                   out_ids.cols, pad_id.has_value(), pad_id.value_or(0),
                   static_cast<uint64_t*>(state.data), ints(out_ids), ints(positions), ints(texts),
                   ints(cu_seqlens), ints(slots)},
                  stream_of(device, stream));
}

void gather_rows(Matrix hidden, Span<int32_t> slots, Matrix packed, int device, uintptr_t stream) {
  cuda::gather_rows(hidden.data, slots.data, packed.data, slots.size, packed.rows,
                    packed.cols * packed.item_bytes, stream_of(device, stream));
}

void scatter_rows(Matrix packed, Span<int32_t> slots, Matrix padded, int device, uintptr_t stream) {
  cuda::scatter_rows(packed.data, slots.data, padded.data, slots.size, packed.rows,
                     packed.cols * packed.item_bytes, stream_of(device, stream));
}
#endif

}  // namespace

void define_operations(py::module_& m) {
  define(m, "bias_gelu", &Kernels::bias_gelu);
  define(m, "add_layernorm", &Kernels::add_layernorm);
  define(m, "embed_layernorm", &Kernels::embed_layernorm);
  define(m, "attention", &Kernels::attention,
         [](const Kernels&, const Matrix&, const Span<int32_t>& ends, int64_t longest, float,
            const Matrix& out, int) {
           const int64_t found = check_offsets("cu_seqlens", ends.data, ends.size - 1, out.rows);
           M3_CHECK(found == longest, "max_seqlen: expected ", found,
                    " from cu_seqlens, found ", longest);
         });
  define(m, "pack_weight", &Kernels::pack_weight,
         [](const Kernels& k, const Matrix& weight, const auto&...) { check_linear(k, weight); });
  define(m, "linear", &Kernels::linear,
         [](const Kernels& k, const Matrix& x, const Matrix&, int panel, const auto&...) {
           M3_CHECK(panel == k.panel, "weight: expected panels of ", k.panel, " outputs, found ",
                    panel, ": packed for other instructions");
           check_linear(k, x);
         });
  define(m, "quantize_rows", &Kernels::quantize_rows);
  define(m, "pack_int8", &Kernels::pack_int8);
  define(m, "int8_times", &Kernels::int8_times);
  define(m, "linear_int8", &Kernels::linear_int8,
         [](const Kernels& k, const Matrix& q, const Matrix& scales, const Matrix& packed, int panel,
            const Span<float>& scale, const Span<float>& sums, const Span<float>&,
            const Matrix& y, int) {
           const int64_t rows = check_int8(k, q, scales, packed, panel, scale, sums);
           M3_CHECK(y.rows == rows && y.cols <= scale.size, "y: expected ", rows, " rows, found ",
                    y.rows);
         });
  define(m, "linear_gelu_int8", &Kernels::linear_gelu_int8,
         [](const Kernels& k, const Matrix& q, const Matrix& scales, const Matrix& packed, int panel,
            const Span<float>& scale, const Span<float>& sums, const Span<float>& bias,
            const Matrix& q_out, const Matrix& scales_out, int) {
           const int64_t rows = check_int8(k, q, scales, packed, panel, scale, sums);
           const int64_t groups = (bias.size + k.int8_group - 1) / k.int8_group;
           M3_CHECK(bias.size <= scale.size && bias.size <= q_out.cols && rows <= q_out.rows &&
                        scales_out.rows * scales_out.cols == rows * groups * 2,
                    "out: expected ", rows, " rows of ", bias.size, " bytes, found ", q_out.rows,
                    " of ", q_out.cols);
         });
  define(m, "add_layernorm_int8", &Kernels::add_layernorm_int8);
  define(m, "embed_layernorm_int8", &Kernels::embed_layernorm_int8);
  define(m, "maxsim", &Kernels::maxsim);
  define(m, "maxsim_pairs", &Kernels::maxsim_pairs);
  m.def(
      "linear_panel", [] { return kernels().panel; }, "Outputs of a panel of packed weights");
  m.def(
      "multiplies_bf16", [] { return kernels().multiplies_bf16; },
      "Whether `linear` takes bf16 too");
  m.def(
      "int8_panel", [] { return kernels().int8_panel; }, "Outputs of a panel in eight bits");
  m.def(
      "int8_bits", [] { return kernels().int8_bits; }, "Bits of rows in products of int8");
  m.def(
      "int8_group", [] { return kernels().int8_group; }, "Columns of such rows that share a scale");
#ifdef M3FAST_CUDA
  m.attr("has_cuda") = true;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("unpad_ids", unpad_ids, unlocked);
  m.def("gather_rows", gather_rows, unlocked);
  m.def("scatter_rows", scatter_rows, unlocked);
#else
  m.attr("has_cuda") = false;
#endif
}

}  // namespace m3
