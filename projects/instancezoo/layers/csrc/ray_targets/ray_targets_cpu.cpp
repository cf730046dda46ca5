#include "ray_targets.h"

#include <algorithm>
#include <array>

#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "degrees.h"

namespace instancezoo {
namespace {

// One pass over each tensor: a pair of them is visited many times later.
void check_values(const at::Tensor& points, const at::Tensor& border_points,
                  const at::Tensor& offsets) {
  const auto* offset = offsets.const_data_ptr<int64_t>();
  TORCH_CHECK_INDEX(offset[0] >= 0 && offset[offsets.size(0) - 1] <= border_points.size(0) &&
                        std::is_sorted(offset, offset + offsets.size(0)),
                    "offsets must ascend from 0 to at most ", border_points.size(0),
                    ", the number of border points");
  if (points.size(0) == 0 || border_points.size(0) == 0) {
    return;
  }
  const auto [low, high] = at::aminmax(points, 0);
  const auto [border_low, border_high] = at::aminmax(border_points, 0);
  for (int64_t axis = 0; axis < 2; ++axis) {
    const int64_t most = std::max<int64_t>(high.const_data_ptr<int32_t>()[axis],
                                           border_high.const_data_ptr<int32_t>()[axis]);
    const int64_t least = std::min<int64_t>(low.const_data_ptr<int32_t>()[axis],
                                            border_low.const_data_ptr<int32_t>()[axis]);
    TORCH_CHECK(most - least < kFarthest, "points and border points span ", most - least,
                " pixels; it must be less than ", kFarthest);
  }
}

}  // namespace

at::Tensor cast_ray_targets_cpu(const at::Tensor& points, const at::Tensor& owners,
                                const at::Tensor& border_points, const at::Tensor& offsets,
                                int64_t num_rays, bool wrap) {
  check_ray_targets(points, owners, border_points, offsets, num_rays);
  const at::Tensor packed_points = points.contiguous();
  const at::Tensor packed_owners = owners.contiguous();
  const at::Tensor packed_borders = border_points.contiguous();
  const at::Tensor packed_offsets = offsets.contiguous();
  const auto* point = packed_points.const_data_ptr<int32_t>();
  const auto* owner = packed_owners.const_data_ptr<int64_t>();
  const auto* border = packed_borders.const_data_ptr<int32_t>();
  const auto* offset = packed_offsets.const_data_ptr<int64_t>();
  const int64_t num_instances = offsets.size(0) - 1;
  check_values(packed_points, packed_borders, packed_offsets);

  const static Tangents tangents = Tangents::make();
  at::Tensor distances = at::empty({points.size(0), num_rays}, at::kFloat);
  auto* distance = distances.mutable_data_ptr<float>();
  std::array<int32_t, kFullTurn> squares;
  for (int64_t index = 0; index < points.size(0); ++index) {
    const int64_t instance = owner[index];
    TORCH_CHECK_INDEX(instance >= 0 && instance < num_instances, "point ", index,
                      " belongs to instance ", instance, " of ", num_instances);
    const int32_t x = point[2 * index];
    const int32_t y = point[2 * index + 1];
    squares.fill(-1);
    for (int64_t other = offset[instance]; other < offset[instance + 1]; ++other) {
      const int32_t dx = border[2 * other] - x;
      const int32_t dy = border[2 * other + 1] - y;
      int32_t& farthest = squares[find_degree(dx, dy, tangents)];
      farthest = std::max(farthest, dx * dx + dy * dy);
    }
    for (int64_t ray = 0; ray < num_rays; ++ray) {
      const auto start = static_cast<int32_t>(ray * (kFullTurn / num_rays));
      distance[index * num_rays + ray] = pick_distance(squares.data(), start, wrap);
    }
  }
  return distances;
}

TORCH_LIBRARY_IMPL(instancezoo, CPU, m) { m.impl("cast_ray_targets", &cast_ray_targets_cpu); }

}  // namespace instancezoo
