// Scores in windows of a grid, enlarged to masks. The contract is that of
// `layers/score_windows.py`.
// Legend: M masks, D prototypes, h w size of the grid, H W image size, S scores of all windows,
// E ends of runs, U pixels.
//
// windows: (M, 4) int64, first row, first column, the rows' and columns' end; the scores of a
// window lie row by row, those of all windows one after the other.
#pragma once

#include <tuple>

#include <ATen/core/Tensor.h>

namespace instancezoo {

// prototypes: (D, h, w) float; coefficients: (M, D) float; windows within the grid.
// Returns (S,) float, the products of each mask's coefficients and the prototypes in its window.
at::Tensor multiply_in_windows_cpu(const at::Tensor& prototypes, const at::Tensor& coefficients,
                                   const at::Tensor& windows);

// scores: (S,) float, values in [0, 1].
// row_cells (H,) int64, ascending, and row_weights (H, 2) float: a row of pixels is a mean of that
// row of cells and the next; column_cells (W,) and column_weights (W, 2) likewise.
// Returns positions (E,) int64 and lengths (M,) int64, as `runs.h` has them, of the pixels above
// the threshold, and (U, 3) int64 mask, row and column of those within `margin` of it: rounding
// could put them on its other side.
std::tuple<at::Tensor, at::Tensor, at::Tensor> find_score_runs_cpu(
    const at::Tensor& scores, const at::Tensor& windows, const at::Tensor& row_cells,
    const at::Tensor& row_weights, const at::Tensor& column_cells,
    const at::Tensor& column_weights, double threshold, double margin);

}  // namespace instancezoo
