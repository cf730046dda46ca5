// Masks given as runs, to COCO's strings or to pixels. The contract is that of `layers/runs.py`.
// Legend: M masks, E ends of runs, B bytes of all strings.
//
// positions: (E,) int64, column-major numbers of the pixels where foreground begins or of the first
// pixel after it; for each mask they ascend within [0, pixels of the image].
// lengths: (M,) int64, the number of positions of each mask.
#pragma once

#include <tuple>

#include <ATen/core/Tensor.h>

namespace instancezoo {

// Returns characters (B,) uint8 of all strings one after the other, and lengths (M,) int64.
std::tuple<at::Tensor, at::Tensor> pack_runs_cpu(const at::Tensor& positions,
                                                 const at::Tensor& lengths, int64_t num_pixels);

// Returns (M, height, width) bool.
at::Tensor fill_runs_cpu(const at::Tensor& positions, const at::Tensor& lengths, int64_t height,
                         int64_t width);

}  // namespace instancezoo
