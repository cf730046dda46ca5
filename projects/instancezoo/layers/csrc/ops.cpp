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
  m.def("pack_runs(Tensor positions, Tensor lengths, int num_pixels) -> (Tensor, Tensor)");
  m.def("fill_runs(Tensor positions, Tensor lengths, int height, int width) -> Tensor");
  m.def("multiply_in_windows(Tensor prototypes, Tensor coefficients, Tensor windows) -> Tensor");
  m.def(
      "find_score_runs(Tensor scores, Tensor windows, Tensor row_cells, Tensor row_weights, "
      "Tensor column_cells, Tensor column_weights, float threshold, float margin) -> (Tensor, "
      "Tensor, Tensor)");
  m.def("contract_greedily(Tensor edges, Tensor weights, int num_nodes) -> Tensor");
  m.def("partition_by_mutexes(Tensor edges, Tensor weights, int num_nodes) -> Tensor");
}

extern "C" PyObject* PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
