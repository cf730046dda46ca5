// Farthest border point near each ray. The contract is that of `layers/polar.py`.
// Legend: P points, V rays, M instances, B border points.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace instancezoo {

// points: (P, 2) int32 x and y; owners: (P,) int64 in [0, M); border_points: (B, 2) int32;
// offsets: (M + 1,) int64, ascending in [0, B], where each instance's border points begin.
// Coordinates must span less than 2^15 pixels, so that squares fit int32. The values are checked:
// on a GPU by assertions of the kernel, which costs no synchronisation.
// Returns (P, V) float distances; V is num_rays and divides 360.
at::Tensor cast_ray_targets_cpu(const at::Tensor& points, const at::Tensor& owners,
                                const at::Tensor& border_points, const at::Tensor& offsets,
                                int64_t num_rays, bool wrap);

at::Tensor cast_ray_targets_cuda(const at::Tensor& points, const at::Tensor& owners,
                                 const at::Tensor& border_points, const at::Tensor& offsets,
                                 int64_t num_rays, bool wrap);

// Checks of the arguments of both.
inline void check_ray_targets(const at::Tensor& points, const at::Tensor& owners,
                              const at::Tensor& border_points, const at::Tensor& offsets,
                              int64_t num_rays) {
  TORCH_CHECK(points.dim() == 2 && points.size(1) == 2 && owners.dim() == 1 &&
                  owners.size(0) == points.size(0),
              "points must be (P, 2) and owners (P,), got ", points.sizes(), " and ",
              owners.sizes());
  TORCH_CHECK(border_points.dim() == 2 && border_points.size(1) == 2 && offsets.dim() == 1 &&
                  offsets.size(0) > 0,
              "border points must be (B, 2) and offsets (M + 1,), got ", border_points.sizes(),
              " and ", offsets.sizes());
  TORCH_CHECK(owners.device() == points.device() && border_points.device() == points.device() &&
                  offsets.device() == points.device(),
              "points, owners, border points and offsets must be on one device");
  TORCH_CHECK(points.scalar_type() == at::kInt && border_points.scalar_type() == at::kInt &&
                  owners.scalar_type() == at::kLong && offsets.scalar_type() == at::kLong,
              "points and border points must be int32, owners and offsets int64");
  TORCH_CHECK(num_rays > 0 && 360 % num_rays == 0, num_rays,
              " rays do not divide 360 degrees evenly");
}

}  // namespace instancezoo
