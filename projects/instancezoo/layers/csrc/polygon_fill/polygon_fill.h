// Polygons to masks or to runs. The contract is that of `layers/polygons.py`.
// Legend: M masks, V vertices, E ends of runs.
#pragma once

#include <tuple>

#include <ATen/core/Tensor.h>

namespace instancezoo {

// vertices: (M, V, 2) int32 x and y.
// Returns (M, height, width) bool.
at::Tensor fill_polygons_cpu(const at::Tensor& vertices, int64_t height, int64_t width);

// The same masks as column-major positions where foreground begins or ends.
// Returns positions (E,) int64, ascending for each polygon, in [0, height * width]; lengths (M,)
// int64, the number of positions of each.
std::tuple<at::Tensor, at::Tensor> find_polygon_runs_cpu(const at::Tensor& vertices, int64_t height,
                                                         int64_t width);

}  // namespace instancezoo
