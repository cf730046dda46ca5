#include "borders.h"

#include <algorithm>
#include <limits>

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "parts.h"

namespace instancezoo {
namespace {

// Where the rows of a part begin; one more than there are rows. A part has no empty row.
std::vector<size_t> find_row_starts(const Part& part) {
  std::vector<size_t> starts;
  for (size_t run = 0; run < part.size(); ++run) {
    if (run == 0 || part[run].y != part[run - 1].y) {
      starts.push_back(run);
    }
  }
  starts.push_back(part.size());
  return starts;
}

// Sums that give the area and the centroid of the polygon through the outermost pixels' centres.
// It consists of a square for each 2x2 window of four pixels and of a triangle for each of three.
class PolygonSums {
 public:
  explicit PolygonSums(const Part& part) {
    const std::vector<size_t> starts = find_row_starts(part);
    for (const Run& run : part) {
      add_links_within(run);
    }
    for (size_t row = 2; row < starts.size(); ++row) {
      const auto add = [&](size_t upper, size_t lower) { add_pair(part[upper], part[lower]); };
      visit_neighbours<true, 1>(part, {starts[row - 2], starts[row - 1]},
                                {starts[row - 1], starts[row]}, add);
    }
    single_ = part.front();
  }

  int64_t double_area() const { return double_area_; }

  // Truncated to whole pixels.
  std::pair<int64_t, int64_t> centroid() const {
    if (double_area_ > 0) {
      return {x_ / (3 * double_area_), y_ / (3 * double_area_)};
    }
    // Without area a part is a tree of pixels: a walk around it passes each link twice.
    if (links_ > 0) {
      return {links_x_ / (2 * links_), links_y_ / (2 * links_)};
    }
    return {single_.begin, single_.y};
  }

 private:
  void add_links_within(const Run& run) {
    const int64_t count = run.end - run.begin - 1;
    links_ += count;
    links_x_ += count * (run.begin + run.end - 1);
    links_y_ += count * 2 * run.y;
  }

  // Runs of neighbouring rows that touch.
  void add_pair(const Run& upper, const Run& lower) {
    const int64_t begin = std::max(upper.begin, lower.begin);
    const int64_t squares = std::min(upper.end, lower.end) - 1 - begin;
    if (squares > 0) {
      double_area_ += 2 * squares;
      x_ += 3 * squares * (2 * begin + squares);
      y_ += 3 * squares * (upper.y + lower.y);
    }
    add_triangles(upper, lower);
    add_triangles(lower, upper);
    // In a part without area, such runs touch in one pair of pixels only.
    const int32_t above = std::clamp(lower.begin, upper.begin, upper.end - 1);
    const int32_t below = std::clamp(above, lower.begin, lower.end - 1);
    links_ += 1;
    links_x_ += above + below;
    links_y_ += upper.y + lower.y;
  }

  // Windows with two pixels of `pair` and one of `single`, which is that run's first or last.
  void add_triangles(const Run& pair, const Run& single) {
    const auto add = [&](int64_t left, int64_t corner) {
      if (left >= pair.begin && left + 1 < pair.end) {
        double_area_ += 1;
        x_ += 2 * left + 1 + corner;
        y_ += 2 * pair.y + single.y;
      }
    };
    add(single.begin - 1, single.begin);
    add(single.end - 1, single.end - 1);
  }

  int64_t double_area_ = 0;
  int64_t x_ = 0;  // first moments times six
  int64_t y_ = 0;
  int64_t links_ = 0;  // pairs of pixels that touch, and the sums of their coordinates
  int64_t links_x_ = 0;
  int64_t links_y_ = 0;
  Run single_{};
};

void append_points(int32_t y, int32_t begin, int32_t end, std::vector<int32_t>& points) {
  for (int32_t x = begin; x < end; ++x) {
    points.push_back(x);
    points.push_back(y);
  }
}

// The pixels of one row that lack one of their four neighbours in the part.
void append_border_row(const Part& part, RowRange above, RowRange row, RowRange below,
                       std::vector<int32_t>& points) {
  for (size_t index = row.begin; index < row.end; ++index) {
    const Run& run = part[index];
    const int32_t last = run.end - 1;
    int32_t next = run.begin;
    while (above.begin < above.end && below.begin < below.end) {
      const Run& upper = part[above.begin];
      const Run& lower = part[below.begin];
      // What both neighbouring rows cover, without the run's two ends, is no border.
      const int32_t covered = std::max({upper.begin, lower.begin, run.begin + 1});
      const int32_t covered_end = std::min({upper.end, lower.end, last});
      if (covered < covered_end) {
        append_points(run.y, next, covered, points);
        next = covered_end;
      }
      if (std::min(upper.end, lower.end) >= last) {
        break;  // they may also cover the next run
      }
      (upper.end < lower.end ? above : below).begin += 1;
    }
    append_points(run.y, next, run.end, points);
  }
}

void append_border(const Part& part, std::vector<int32_t>& points) {
  const std::vector<size_t> starts = find_row_starts(part);
  const size_t num_rows = starts.size() - 1;
  for (size_t row = 0; row < num_rows; ++row) {
    const RowRange none{0, 0};
    append_border_row(part, row == 0 ? none : RowRange{starts[row - 1], starts[row]},
                      {starts[row], starts[row + 1]},
                      row + 1 == num_rows ? none : RowRange{starts[row + 1], starts[row + 2]},
                      points);
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> find_borders_cpu(const at::Tensor& masks) {
  TORCH_CHECK(masks.dim() == 3 && masks.scalar_type() == at::kBool,
              "masks must be (M, H, W) bool, got ", masks.sizes(), " ", masks.scalar_type());
  TORCH_CHECK(std::max(masks.size(1), masks.size(2)) < std::numeric_limits<int32_t>::max(),
              "masks are too large: ", masks.sizes());
  const at::Tensor packed = masks.contiguous();
  const int64_t num_masks = packed.size(0);
  const auto height = static_cast<int32_t>(packed.size(1));
  const auto width = static_cast<int32_t>(packed.size(2));

  at::Tensor offsets = at::empty({num_masks + 1}, at::kLong);
  at::Tensor centers = at::empty({num_masks, 2}, at::kFloat);
  auto* offset = offsets.mutable_data_ptr<int64_t>();
  auto* center = centers.mutable_data_ptr<float>();
  std::vector<int32_t> found;
  offset[0] = 0;
  for (int64_t index = 0; index < num_masks; ++index) {
    const bool* mask = packed.const_data_ptr<bool>() + index * height * width;
    const Part* largest = nullptr;
    int64_t largest_area = -1;
    std::pair<int64_t, int64_t> centroid{0, 0};
    const std::vector<Part> parts = find_filled_parts(mask, height, width);
    for (const Part& part : parts) {
      const PolygonSums sums(part);
      if (sums.double_area() >= largest_area) {
        largest = &part;
        largest_area = sums.double_area();
        centroid = sums.centroid();
      }
    }
    if (largest != nullptr) {
      append_border(*largest, found);
    }
    offset[index + 1] = static_cast<int64_t>(found.size() / 2);
    center[2 * index] = static_cast<float>(centroid.first);
    center[2 * index + 1] = static_cast<float>(centroid.second);
  }
  at::Tensor points = at::empty({static_cast<int64_t>(found.size() / 2), 2}, at::kInt);
  std::copy(found.begin(), found.end(), points.mutable_data_ptr<int32_t>());
  return {points, offsets, centers};
}

TORCH_LIBRARY_IMPL(instancezoo, CPU, m) { m.impl("find_borders", &find_borders_cpu); }

}  // namespace instancezoo
