// Outer borders and mass centres of masks. The contract is that of `layers/borders.py`.
// Legend: M instances, H W image size, B border points.
#pragma once

#include <tuple>

#include <ATen/core/Tensor.h>

namespace instancezoo {

// masks: (M, H, W) bool.
// Returns points (B, 2) int32 x and y, row by row within an instance; offsets (M + 1,) int64;
// centers (M, 2) float, whole numbers.
std::tuple<at::Tensor, at::Tensor, at::Tensor> find_borders_cpu(const at::Tensor& masks);

}  // namespace instancezoo
