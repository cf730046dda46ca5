#include "ray_targets.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "degrees.h"

namespace instancezoo {
namespace {

constexpr int kThreads = 128;

// One block per point. The table holds integers: the order of atomic maxima does not matter.
__global__ void cast_ray_targets_kernel(const int32_t* __restrict__ points,
                                        const int64_t* __restrict__ owners,
                                        const int32_t* __restrict__ border_points,
                                        const int64_t* __restrict__ offsets,
                                        const int64_t num_instances,
                                        const int64_t num_border_points, const Tangents tangents,
                                        const int32_t num_rays, const bool wrap,
                                        float* __restrict__ distances) {
  __shared__ int32_t squares[kFullTurn];
  for (int32_t degree = threadIdx.x; degree < kFullTurn; degree += blockDim.x) {
    squares[degree] = -1;
  }
  __syncthreads();

  const int64_t index = blockIdx.x;
  const int64_t instance = owners[index];
  CUDA_KERNEL_ASSERT(instance >= 0 && instance < num_instances);
  const int32_t x = points[2 * index];
  const int32_t y = points[2 * index + 1];
  const int64_t start = offsets[instance];
  const int64_t stop = offsets[instance + 1];
  CUDA_KERNEL_ASSERT(start >= 0 && start <= stop && stop <= num_border_points);
  for (int64_t other = start + threadIdx.x; other < stop; other += blockDim.x) {
    const int64_t across = static_cast<int64_t>(border_points[2 * other]) - x;
    const int64_t down = static_cast<int64_t>(border_points[2 * other + 1]) - y;
    CUDA_KERNEL_ASSERT(across > -kFarthest && across < kFarthest && down > -kFarthest &&
                       down < kFarthest);
    const auto dx = static_cast<int32_t>(across);
    const auto dy = static_cast<int32_t>(down);
    atomicMax(&squares[find_degree(dx, dy, tangents)], dx * dx + dy * dy);
  }
  __syncthreads();

  for (int32_t ray = threadIdx.x; ray < num_rays; ray += blockDim.x) {
    const int32_t degree = ray * (kFullTurn / num_rays);
    distances[index * num_rays + ray] = pick_distance(squares, degree, wrap);
  }
}

}  // namespace

at::Tensor cast_ray_targets_cuda(const at::Tensor& points, const at::Tensor& owners,
                                 const at::Tensor& border_points, const at::Tensor& offsets,
                                 int64_t num_rays, bool wrap) {
  check_ray_targets(points, owners, border_points, offsets, num_rays);
  const c10::cuda::CUDAGuard guard(points.device());
  at::Tensor distances = at::empty({points.size(0), num_rays}, points.options().dtype(at::kFloat));
  if (points.size(0) == 0) {
    return distances;
  }
  const at::Tensor packed_points = points.contiguous();
  const at::Tensor packed_owners = owners.contiguous();
  const at::Tensor packed_borders = border_points.contiguous();
  const at::Tensor packed_offsets = offsets.contiguous();
  cast_ray_targets_kernel<<<static_cast<unsigned>(points.size(0)), kThreads, 0,
                            c10::cuda::getCurrentCUDAStream()>>>(
      packed_points.const_data_ptr<int32_t>(), packed_owners.const_data_ptr<int64_t>(),
      packed_borders.const_data_ptr<int32_t>(), packed_offsets.const_data_ptr<int64_t>(),
      offsets.size(0) - 1, border_points.size(0), Tangents::make(), static_cast<int32_t>(num_rays), wrap,
      distances.mutable_data_ptr<float>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return distances;
}

TORCH_LIBRARY_IMPL(instancezoo, CUDA, m) { m.impl("cast_ray_targets", &cast_ray_targets_cuda); }

}  // namespace instancezoo
