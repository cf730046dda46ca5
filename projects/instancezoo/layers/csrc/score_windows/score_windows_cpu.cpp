#include "score_windows.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace instancezoo {
namespace {

struct Window {
  int64_t top;
  int64_t left;
  int64_t bottom;
  int64_t right;

  int64_t height() const { return bottom - top; }
  int64_t width() const { return right - left; }
  int64_t area() const { return height() * width(); }
};
static_assert(sizeof(Window) == 4 * sizeof(int64_t), "a row of `windows` is read as it is");

bool is_float(const at::Tensor& tensor, int64_t num_dims) {
  return tensor.dim() == num_dims && tensor.scalar_type() == at::kFloat;
}

const Window* read_windows(const at::Tensor& windows, int64_t height, int64_t width) {
  TORCH_CHECK(windows.dim() == 2 && windows.size(1) == 4 && windows.scalar_type() == at::kLong &&
                  windows.is_contiguous(),
              "windows must be (M, 4) int64, got ", windows.sizes(), " ", windows.scalar_type());
  const auto* window = reinterpret_cast<const Window*>(windows.const_data_ptr<int64_t>());
  for (int64_t mask = 0; mask < windows.size(0); ++mask) {
    const Window w = window[mask];
    TORCH_CHECK(0 <= w.top && w.top <= w.bottom && w.bottom <= height && 0 <= w.left &&
                    w.left <= w.right && w.right <= width,
                "windows must lie within the grid");
  }
  return window;
}

int64_t count_scores(const Window* windows, int64_t num_masks) {
  int64_t total = 0;
  for (int64_t mask = 0; mask < num_masks; ++mask) {
    total += windows[mask].area();
  }
  return total;
}

// Pixels along an axis and the cells that they are means of.
struct Axis {
  const int64_t* cells;
  const float* weights;
  // For each cell the first pixel whose cell it or a later one is, then the number of pixels.
  std::vector<int64_t> first;

  int64_t find_first(int64_t cell) const {
    const auto last = static_cast<int64_t>(first.size()) - 1;
    return first[std::clamp<int64_t>(cell, 0, last)];
  }
};

Axis make_axis(const at::Tensor& cells, const at::Tensor& weights) {
  TORCH_CHECK(cells.dim() == 1 && cells.scalar_type() == at::kLong && is_float(weights, 2) &&
                  weights.size(0) == cells.size(0) && weights.size(1) == 2,
              "cells must be (H,) int64 and their weights (H, 2) float, got ", cells.sizes(), " ",
              cells.scalar_type(), " and ", weights.sizes(), " ", weights.scalar_type());
  const auto* cell = cells.const_data_ptr<int64_t>();
  const int64_t length = cells.size(0);
  Axis axis{cell, weights.const_data_ptr<float>(), {}};
  for (int64_t pixel = 0; pixel < length; ++pixel) {
    TORCH_CHECK(cell[pixel] >= (pixel ? cell[pixel - 1] : 0), "cells must ascend from 0");
    axis.first.resize(cell[pixel] + 1, pixel);
  }
  axis.first.push_back(length);
  return axis;
}

// A mean of values up to a power of two, or to 0, does not exceed it, however it is rounded.
bool bounds_means(float value) {
  int exponent = 0;
  return value == 0.0F || std::frexp(value, &exponent) == 0.5F;
}

class Tracer {
 public:
  Tracer(Axis rows, Axis columns, int64_t height, float threshold, float margin)
      : rows_(std::move(rows)),
        columns_(std::move(columns)),
        height_(height),
        threshold_(threshold),
        margin_(margin),
        is_exact_(bounds_means(threshold)) {}

  // Appends the ends of a mask's runs.
  void trace(int64_t mask, const float* scores, Window window) {
    if (window.area() == 0) {
      return;
    }
    mask_ = mask;
    begin_ = positions.size();
    store_columns(scores, window);
    const int64_t num_cells = window.height() + 2;
    line_.resize(num_cells);
    // A pixel between two cells reaches both: begin one cell before the window.
    const int64_t stop = columns_.find_first(window.right);
    for (int64_t x = columns_.find_first(window.left - 1); x < stop; ++x) {
      const float* left = grid_.data() + (columns_.cells[x] - window.left + 1) * num_cells;
      const float* right = left + num_cells;
      const float one = columns_.weights[2 * x];
      const float other = columns_.weights[2 * x + 1];
      for (int64_t y = 0; y < num_cells; ++y) {
        line_[y] = left[y] * one + right[y] * other;
      }
      trace_column(x, left, right, window);
    }
  }

  std::vector<int64_t> positions;
  std::vector<int64_t> unsure;

 private:
  // The window with a border of zeros, column by column.
  void store_columns(const float* scores, Window window) {
    const int64_t num_cells = window.height() + 2;
    grid_.assign(num_cells * (window.width() + 2), 0.0F);
    for (int64_t y = 0; y < window.height(); ++y) {
      for (int64_t x = 0; x < window.width(); ++x) {
        grid_[(x + 1) * num_cells + y + 1] = *scores++;
      }
    }
  }

  void trace_column(int64_t x, const float* left, const float* right, Window window) {
    const int64_t head = x * height_;
    bool inside = false;
    const auto move_to = [&](bool side, int64_t y) {
      if (side != inside) {
        add_position(head + y);
        inside = side;
      }
    };
    int64_t y = rows_.find_first(window.top - 1);
    for (int64_t cell = 0; cell <= window.height(); ++cell) {
      const int64_t stop = rows_.find_first(window.top + cell);
      if (y == stop) {
        continue;
      }
      const float upper = line_[cell];
      const float lower = line_[cell + 1];
      if (upper < threshold_ - margin_ && lower < threshold_ - margin_) {
        move_to(false, y);
      } else if (upper > threshold_ + margin_ && lower > threshold_ + margin_) {
        move_to(true, y);
      } else {
        const bool is_flat = is_exact_ && std::max({left[cell], left[cell + 1], right[cell],
                                                    right[cell + 1]}) <= threshold_;
        for (int64_t row = y; row < stop; ++row) {
          const float value = upper * rows_.weights[2 * row] + lower * rows_.weights[2 * row + 1];
          move_to(value > threshold_, row);
          if (std::abs(value - threshold_) <= margin_ && !is_flat) {
            unsure.insert(unsure.end(), {mask_, row, x});
          }
        }
      }
      y = stop;
    }
    move_to(false, y);
  }

  // A run that fills a column to its foot and the next from its head does not end there.
  void add_position(int64_t position) {
    if (positions.size() > begin_ && positions.back() == position) {
      positions.pop_back();
    } else {
      positions.push_back(position);
    }
  }

  const Axis rows_;
  const Axis columns_;
  const int64_t height_;
  const float threshold_;
  const float margin_;
  const bool is_exact_;
  int64_t mask_ = 0;
  size_t begin_ = 0;
  std::vector<float> grid_;
  std::vector<float> line_;
};

at::Tensor copy_numbers(const std::vector<int64_t>& numbers) {
  at::Tensor copy = at::empty({static_cast<int64_t>(numbers.size())}, at::kLong);
  std::copy(numbers.begin(), numbers.end(), copy.mutable_data_ptr<int64_t>());
  return copy;
}

}  // namespace

at::Tensor multiply_in_windows_cpu(const at::Tensor& prototypes, const at::Tensor& coefficients,
                                   const at::Tensor& windows) {
  TORCH_CHECK(is_float(prototypes, 3) && is_float(coefficients, 2) &&
                  coefficients.size(1) == prototypes.size(0) &&
                  coefficients.size(0) == windows.size(0),
              "prototypes must be (D, h, w) and coefficients (M, D) float, a row for each window, ",
              "got ", prototypes.sizes(), " ", prototypes.scalar_type(), " and ",
              coefficients.sizes(), " ", coefficients.scalar_type());
  const int64_t num_masks = coefficients.size(0);
  const int64_t num_prototypes = prototypes.size(0);
  const int64_t grid_width = prototypes.size(2);
  const int64_t grid_area = prototypes.size(1) * grid_width;
  const at::Tensor packed_windows = windows.contiguous();
  const at::Tensor packed_prototypes = prototypes.contiguous();
  const at::Tensor packed_coefficients = coefficients.contiguous();
  const Window* window = read_windows(packed_windows, prototypes.size(1), grid_width);
  const auto* prototype = packed_prototypes.const_data_ptr<float>();
  const auto* coefficient = packed_coefficients.const_data_ptr<float>();
  at::Tensor products = at::zeros({count_scores(window, num_masks)}, at::kFloat);
  auto* product = products.mutable_data_ptr<float>();
  for (int64_t mask = 0; mask < num_masks; ++mask, coefficient += num_prototypes) {
    const Window w = window[mask];
    for (int64_t y = w.top; y < w.bottom; ++y, product += w.width()) {
      const float* row = prototype + y * grid_width + w.left;
      for (int64_t index = 0; index < num_prototypes; ++index, row += grid_area) {
        const float factor = coefficient[index];
        for (int64_t x = 0; x < w.width(); ++x) {
          product[x] += factor * row[x];
        }
      }
    }
  }
  return products;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> find_score_runs_cpu(
    const at::Tensor& scores, const at::Tensor& windows, const at::Tensor& row_cells,
    const at::Tensor& row_weights, const at::Tensor& column_cells,
    const at::Tensor& column_weights, double threshold, double margin) {
  const at::Tensor packed_scores = scores.contiguous();
  const at::Tensor packed_windows = windows.contiguous();
  const at::Tensor axes[] = {row_cells.contiguous(), row_weights.contiguous(),
                             column_cells.contiguous(), column_weights.contiguous()};
  Axis rows = make_axis(axes[0], axes[1]);
  Axis columns = make_axis(axes[2], axes[3]);
  constexpr int64_t kLargest = int64_t{1} << 31;
  const Window* window = read_windows(packed_windows, kLargest, kLargest);
  const int64_t num_masks = windows.size(0);
  TORCH_CHECK(is_float(scores, 1) && scores.size(0) == count_scores(window, num_masks),
              "scores must be (S,) float, one for each cell of the windows, got ", scores.sizes(),
              " ", scores.scalar_type());
  Tracer tracer(std::move(rows), std::move(columns), row_cells.size(0),
                static_cast<float>(threshold), static_cast<float>(margin));
  at::Tensor lengths = at::empty({num_masks}, at::kLong);
  auto* length = lengths.mutable_data_ptr<int64_t>();
  const auto* score = packed_scores.const_data_ptr<float>();
  for (int64_t mask = 0; mask < num_masks; ++mask) {
    const size_t before = tracer.positions.size();
    tracer.trace(mask, score, window[mask]);
    length[mask] = static_cast<int64_t>(tracer.positions.size() - before);
    score += window[mask].area();
  }
  return {copy_numbers(tracer.positions), lengths, copy_numbers(tracer.unsure).view({-1, 3})};
}

TORCH_LIBRARY_IMPL(instancezoo, CPU, m) {
  m.impl("multiply_in_windows", &multiply_in_windows_cpu);
  m.impl("find_score_runs", &find_score_runs_cpu);
}

}  // namespace instancezoo
