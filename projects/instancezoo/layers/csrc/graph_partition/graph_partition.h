// Partition of the nodes of a weighted graph. The contract is that of `layers/graph_partition.py`.
// Legend: V nodes, E edges.
//
// edges: (E, 2) int64, nodes in [0, V); weights: (E,) double, above 0 where both ends attract each
// other. Weights of parallel edges are added; edges from a node to itself do not count.
// Both return (V,) int64, the part of each node; parts are numbered from 0 on by first appearance.
#pragma once

#include <ATen/core/Tensor.h>

namespace instancezoo {

// Greedy additive edge contraction: the largest weight above 0 first; of equal ones, the smaller
// pair of smallest nodes of both parts.
at::Tensor contract_greedily_cpu(const at::Tensor& edges, const at::Tensor& weights,
                                 int64_t num_nodes);

// Mutex watershed: the largest magnitude first; of equal ones, the smaller pair of nodes.
at::Tensor partition_by_mutexes_cpu(const at::Tensor& edges, const at::Tensor& weights,
                                    int64_t num_nodes);

}  // namespace instancezoo
