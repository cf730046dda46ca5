"""Partition of a weighted graph's nodes: cheap to cut where weights are negative (multicut).

The sum of the weights of all edges that are cut shall be small. No method here finds the smallest.
Partitions are sequential: they run on the CPU, in double precision.

Legend: V nodes, E edges.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from instancezoo.layers.extension import find_compiled, register_fake

_CPU = torch.device("cpu")


def contract_greedily(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    """Greedy additive edge contraction (Keuper et al., ICCV 2015).

    The two parts with the largest weight between them become one, until no weight is above 0. Of
    equal weights, the edge with the smaller pair (smaller, larger) of the parts' smallest nodes
    comes first.

    Args:
        edges: (E, 2) long, nodes in [0, V). Weights of parallel edges are added, in their order; an
            edge from a node to itself does not count.
        weights: (E,), above 0 where both ends attract each other; NaN attracts nothing.
        num_nodes: V.

    Returns:
        (V,) long, the part of each node; parts are numbered from 0 on by first appearance. On the
        device of the edges.
    """
    contract = find_compiled("contract_greedily", _CPU) or _contract_greedily
    parts: Tensor = contract(edges.to(_CPU), _to_double(weights), num_nodes)
    return parts.to(edges.device)


def mutex_watershed(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    """Mutex watershed (Wolf et al., ECCV 2018).

    Edges are visited once, the largest magnitude first; of equal ones, the smaller pair of nodes. A
    weight above 0 joins two parts, unless one below 0 has been visited between them.

    Args, Returns: as in `contract_greedily`; weights that are 0 or NaN do not count.
    """
    flood = find_compiled("mutex_watershed", _CPU) or _mutex_watershed
    parts: Tensor = flood(edges.to(_CPU), _to_double(weights), num_nodes)
    return parts.to(edges.device)


def sum_cut_weights(edges: Tensor, weights: Tensor, parts: Tensor) -> Tensor:
    """What a partition costs: the sum of the weights of edges between two parts.

    Args:
        edges: (E, 2) long.
        weights: (E,).
        parts: (V,) long.

    Returns:
        ()
    """
    ends = parts[edges]  # (E, 2)
    return (weights * (ends[:, 0] != ends[:, 1])).sum()


def _to_double(weights: Tensor) -> Tensor:
    return weights.detach().to(_CPU, torch.double)


def _contract_greedily(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    """The plain version of the operator: the smaller node of two takes over all edges."""
    links: list[dict[int, float]] = [{} for _ in range(num_nodes)]
    for (a, b), weight in zip(edges.tolist(), weights.tolist(), strict=True):
        if a != b:
            links[a][b] = links[b][a] = links[a].get(b, 0.0) + weight
    pairs = ((a, b, weight) for a, others in enumerate(links) for b, weight in others.items())
    heap = [(-weight, a, b) for a, b, weight in pairs if a < b and weight > 0]
    heapq.heapify(heap)
    parents = list(range(num_nodes))
    while heap:
        negative, low, high = heapq.heappop(heap)
        if links[low].get(high) != -negative:
            continue  # it has changed since
        parents[high] = low
        del links[high][low], links[low][high]
        for other, weight in links[high].items():
            del links[other][high]
            total = links[low].get(other, 0.0) + weight
            links[low][other] = links[other][low] = total
            if total > 0:
                heapq.heappush(heap, (-total, min(low, other), max(low, other)))
        links[high] = {}
    return _number_parts(parents)


def _mutex_watershed(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    """The plain version of the operator: the smaller node of two is the root of their part."""
    totals: dict[tuple[int, int], float] = {}
    for (a, b), weight in zip(edges.tolist(), weights.tolist(), strict=True):
        if a != b:
            pair = min(a, b), max(a, b)
            totals[pair] = totals.get(pair, 0.0) + weight
    parents = list(range(num_nodes))
    excluded: list[set[int]] = [set() for _ in range(num_nodes)]  # roots for a root

    def find(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    order = [(-abs(weight), pair) for pair, weight in totals.items() if abs(weight) > 0]
    for _, pair in sorted(order):
        low, high = sorted((find(pair[0]), find(pair[1])))
        if low == high:
            continue
        if totals[pair] < 0:
            excluded[low].add(high)
            excluded[high].add(low)
        elif high not in excluded[low]:
            parents[high] = low
            for other in excluded[high]:
                excluded[other].remove(high)
                excluded[other].add(low)
            excluded[low] |= excluded[high]
    return _number_parts(parents)


def _number_parts(parents: list[int]) -> Tensor:
    """Parts by parents, none of which is larger than its node."""
    roots: list[int] = []
    for node, parent in enumerate(parents):
        roots.append(node if parent == node else roots[parent])
    numbers: Tensor = torch.tensor(roots, dtype=torch.long).unique(return_inverse=True)[1]
    return numbers


@register_fake("contract_greedily")
def _shape_contracted(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    return edges.new_empty((num_nodes,))


@register_fake("mutex_watershed")
def _shape_flooded(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    return edges.new_empty((num_nodes,))
