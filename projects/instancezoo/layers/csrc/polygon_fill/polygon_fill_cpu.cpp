#include "polygon_fill.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <vector>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "scan.h"

namespace instancezoo {
namespace {

struct Crossing {
  int32_t x;
  int32_t y;
};

void check_input(const at::Tensor& vertices, int64_t height, int64_t width) {
  TORCH_CHECK(vertices.dim() == 3 && vertices.size(2) == 2 && vertices.scalar_type() == at::kInt,
              "vertices must be (M, V, 2) int32, got ", vertices.sizes(), " ",
              vertices.scalar_type());
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  TORCH_CHECK(height >= 0 && width >= 0 && height < kLimit && width < kLimit, "no image is ",
              height, " x ", width, " pixels");
}

void append_ends(const std::vector<Span>& spans, std::vector<int32_t>& ends) {
  for (const Span span : spans) {
    ends.push_back(span.begin);
    ends.push_back(span.end);
  }
}

// Pixels that differ from the one above: in their column, foreground begins or ends there.
std::vector<Crossing> find_crossings(const SpanRows& shape) {
  std::vector<Crossing> crossings;
  std::vector<int32_t> above;
  std::vector<int32_t> here;
  std::vector<int32_t> both;
  for (size_t row = 0; row <= shape.rows.size(); ++row) {
    here.clear();
    both.clear();
    if (row < shape.rows.size()) {
      append_ends(shape.rows[row], here);
    }
    // Between the sorted ends of both rows, the rows differ in every other interval.
    std::merge(above.begin(), above.end(), here.begin(), here.end(), std::back_inserter(both));
    for (size_t end = 0; end < both.size(); end += 2) {
      for (int32_t x = both[end]; x < both[end + 1]; ++x) {
        crossings.push_back({x, shape.top + static_cast<int32_t>(row)});
      }
    }
    above.swap(here);
  }
  return crossings;
}

// Sorts by column, and keeps the order of rows.
void append_positions(const std::vector<Crossing>& crossings, int64_t height,
                      std::vector<int64_t>& positions) {
  if (crossings.empty()) {
    return;
  }
  const auto [least, most] = std::minmax_element(crossings.begin(), crossings.end(),
                                                 [](Crossing a, Crossing b) { return a.x < b.x; });
  const int32_t left = least->x;
  std::vector<size_t> next(most->x - left + 2);
  for (const Crossing crossing : crossings) {
    ++next[crossing.x - left + 1];
  }
  for (size_t column = 1; column < next.size(); ++column) {
    next[column] += next[column - 1];
  }
  std::vector<int64_t> sorted(crossings.size());
  for (const Crossing crossing : crossings) {
    sorted[next[crossing.x - left]++] = crossing.x * height + crossing.y;
  }
  const size_t begin = positions.size();
  for (const int64_t position : sorted) {
    // A run that fills a column to its foot and the next from its head does not end there.
    if (positions.size() > begin && positions.back() == position) {
      positions.pop_back();
    } else {
      positions.push_back(position);
    }
  }
}

}  // namespace

at::Tensor fill_polygons_cpu(const at::Tensor& vertices, int64_t height, int64_t width) {
  check_input(vertices, height, width);
  const at::Tensor packed = vertices.contiguous();
  const auto* corners = packed.const_data_ptr<int32_t>();
  at::Tensor masks = at::zeros({packed.size(0), height, width}, at::kBool);
  auto* mask = masks.mutable_data_ptr<bool>();
  for (int64_t index = 0; index < packed.size(0); ++index) {
    const SpanRows shape = scan_polygon(corners + index * packed.size(1) * 2, packed.size(1),
                                        static_cast<int32_t>(height), static_cast<int32_t>(width));
    for (size_t row = 0; row < shape.rows.size(); ++row) {
      bool* first = mask + (index * height + shape.top + static_cast<int64_t>(row)) * width;
      for (const Span span : shape.rows[row]) {
        std::memset(first + span.begin, 1, span.end - span.begin);
      }
    }
  }
  return masks;
}

std::tuple<at::Tensor, at::Tensor> find_polygon_runs_cpu(const at::Tensor& vertices, int64_t height,
                                                         int64_t width) {
  check_input(vertices, height, width);
  const at::Tensor packed = vertices.contiguous();
  const auto* corners = packed.const_data_ptr<int32_t>();
  at::Tensor lengths = at::empty({packed.size(0)}, at::kLong);
  auto* length = lengths.mutable_data_ptr<int64_t>();
  std::vector<int64_t> found;
  for (int64_t index = 0; index < packed.size(0); ++index) {
    const size_t before = found.size();
    const SpanRows shape = scan_polygon(corners + index * packed.size(1) * 2, packed.size(1),
                                        static_cast<int32_t>(height), static_cast<int32_t>(width));
    append_positions(find_crossings(shape), height, found);
    length[index] = static_cast<int64_t>(found.size() - before);
  }
  at::Tensor positions = at::empty({static_cast<int64_t>(found.size())}, at::kLong);
  std::copy(found.begin(), found.end(), positions.mutable_data_ptr<int64_t>());
  return {positions, lengths};
}

TORCH_LIBRARY_IMPL(instancezoo, CPU, m) {
  m.impl("fill_polygons", &fill_polygons_cpu);
  m.impl("find_polygon_runs", &find_polygon_runs_cpu);
}

}  // namespace instancezoo
