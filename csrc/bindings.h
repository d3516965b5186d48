// What bindings*.cpp share: pybind11 is known to them alone.
#pragma once
// Else every reference that is taken or dropped asks who holds the GIL.
#define PYBIND11_NO_ASSERT_GIL_HELD_INCREF_DECREF
#include <pybind11/pybind11.h>

namespace m3 {

// The operations on tensors, with those of CUDA where the build has them.
void define_operations(pybind11::module_& m);

}  // namespace m3
