// Schemas of all operators of `torch.ops.instancezoo`, and the module whose import loads them.

#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(instancezoo, m) {
  m.def("find_borders(Tensor masks) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cast_ray_targets(Tensor points, Tensor owners, Tensor border_points, Tensor offsets, "
      "int num_rays, bool wrap) -> Tensor");
  m.def("fill_polygons(Tensor vertices, int height, int width) -> Tensor");
  m.def("find_polygon_runs(Tensor vertices, int height, int width) -> (Tensor, Tensor)");
}

extern "C" PyObject* PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
