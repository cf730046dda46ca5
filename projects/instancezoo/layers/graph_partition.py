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


def partition_by_mutexes(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    """Mutex watershed (Wolf et al., ECCV 2018).

    Edges are visited once, the largest magnitude first; of equal ones, the smaller pair of nodes. A
    weight above 0 joins two parts, unless one below 0 has been visited between them.

    Args, Returns: as in `contract_greedily`; weights that are 0 or NaN do not count.
    """
    flood = find_compiled("partition_by_mutexes", _CPU) or _partition_by_mutexes
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
    """The plain version of the operator: of two roots, the one with more links takes over all."""
    links: list[dict[int, float]] = [{} for _ in range(num_nodes)]  # of roots, to roots
    for (a, b), weight in zip(edges.tolist(), weights.tolist(), strict=True):
        if a != b:
            links[a][b] = links[b][a] = links[a].get(b, 0.0) + weight
    parents, smallest = list(range(num_nodes)), list(range(num_nodes))
    heap: list[tuple[float, int, int, int, int]] = []

    def push(a: int, b: int) -> None:
        if (weight := links[a][b]) > 0:
            if smallest[a] > smallest[b]:
                a, b = b, a
            heapq.heappush(heap, (-weight, smallest[a], smallest[b], a, b))

    for a, others in enumerate(links):
        for b in others:
            if a < b:
                push(a, b)
    while heap:
        negative, low, high, a, b = heapq.heappop(heap)
        if links[a].get(b) != -negative or (low, high) != (smallest[a], smallest[b]):
            continue  # it has changed since
        root, below = (a, b) if len(links[a]) >= len(links[b]) else (b, a)
        parents[below] = root
        del links[a][b], links[b][a]
        changed = list(links[below])
        for other, weight in links[below].items():
            del links[other][below]
            total = links[root].get(other, 0.0) + weight
            links[root][other] = links[other][root] = total
        links[below] = {}
        # The rank among equal weights depends on the smallest node.
        is_renamed, smallest[root] = smallest[root] != low, low
        for other in list(links[root]) if is_renamed else changed:
            push(root, other)
    return _number_parts(parents)


def _partition_by_mutexes(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    """The plain version of the operator: of two roots, the one with more mutexes stays."""
    totals: dict[tuple[int, int], float] = {}
    for (a, b), weight in zip(edges.tolist(), weights.tolist(), strict=True):
        if a != b:
            pair = min(a, b), max(a, b)
            totals[pair] = totals.get(pair, 0.0) + weight
    parents = list(range(num_nodes))
    excluded: list[set[int]] = [set() for _ in range(num_nodes)]  # roots for a root
    order = [(-abs(weight), pair) for pair, weight in totals.items() if abs(weight) > 0]
    for _, pair in sorted(order):
        root, below = _find_root(parents, pair[0]), _find_root(parents, pair[1])
        if root == below:
            continue
        if totals[pair] < 0:
            excluded[root].add(below)
            excluded[below].add(root)
        elif below not in excluded[root]:
            if len(excluded[root]) < len(excluded[below]):
                root, below = below, root
            parents[below] = root
            for other in excluded[below]:
                excluded[other].remove(below)
                excluded[other].add(root)
            excluded[root] |= excluded[below]
            excluded[below] = set()
    return _number_parts(parents)


def _find_root(parents: list[int], node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


def _number_parts(parents: list[int]) -> Tensor:
    numbers: dict[int, int] = {}  # of roots, in the order of their first nodes
    roots = (_find_root(parents, node) for node in range(len(parents)))
    return torch.tensor([numbers.setdefault(r, len(numbers)) for r in roots], dtype=torch.long)


@register_fake("contract_greedily")
def _shape_contracted(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    return edges.new_empty((num_nodes,))


@register_fake("partition_by_mutexes")
def _shape_flooded(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    return edges.new_empty((num_nodes,))
