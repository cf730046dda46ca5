"""Graph partitions: both versions against slow references, and against a library's where it is."""

from itertools import combinations

import numpy as np
import pytest
import torch

from instancezoo.layers import extension
from instancezoo.layers.graph_partition import (
    contract_greedily,
    partition_by_mutexes,
    sum_cut_weights,
)

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("partition", [contract_greedily, partition_by_mutexes])


def _make_graph(num_nodes, num_edges, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edges = (torch.rand(num_edges, 2, generator=generator) * num_nodes).long()
    weights = torch.randn(num_edges, generator=generator, dtype=torch.float64)
    if kind == "ties":
        weights = (2 * weights).round()
    elif kind == "attractive":
        weights += 1
    return edges, weights


def _list_weights(edges, weights):
    """Summed weight of each pair of nodes."""
    totals = {}
    for (a, b), weight in zip(edges.tolist(), weights.tolist(), strict=True):
        if a != b:
            totals[min(a, b), max(a, b)] = totals.get((min(a, b), max(a, b)), 0.0) + weight
    return totals


def _number(parts, num_nodes):
    owner = {node: index for index, part in enumerate(sorted(parts, key=min)) for node in part}
    return torch.tensor([owner[node] for node in range(num_nodes)], dtype=torch.long)


def _contract_slowly(edges, weights, num_nodes):
    """All weights between all parts, anew in each step."""
    totals = _list_weights(edges, weights)
    parts = {node: {node} for node in range(num_nodes)}  # smallest node -> part
    while True:
        best = None
        for low, high in combinations(sorted(parts), 2):
            pairs = [(min(a, b), max(a, b)) for a in parts[low] for b in parts[high]]
            weight = sum(totals.get(pair, 0.0) for pair in pairs)
            if weight > 0 and (best is None or weight > best[0]):
                best = weight, low, high
        if best is None:
            return _number(parts.values(), num_nodes)
        parts[best[1]] |= parts.pop(best[2])


def _flood_slowly(edges, weights, num_nodes):
    """Every pair that an edge has excluded is kept, and looked through."""
    totals = _list_weights(edges, weights)
    owner, excluded = list(range(num_nodes)), set()
    for pair in sorted(totals, key=lambda pair: (-abs(totals[pair]), pair)):
        if totals[pair] < 0:
            excluded.add(pair)
        elif totals[pair] > 0:
            first, second = owner[pair[0]], owner[pair[1]]
            if not any({owner[a], owner[b]} == {first, second} for a, b in excluded):
                owner = [first if part == second else part for part in owner]
    parts = [{n for n in range(num_nodes) if owner[n] == part} for part in set(owner)]
    return _number(parts, num_nodes)


@pytest.mark.parametrize("num_nodes,num_edges", [(0, 0), (1, 0), (1, 3), (7, 12), (14, 60)])
@pytest.mark.parametrize("kind", ["plain", "ties", "attractive"])
def test_partitions_equal_slow_references(op_version, num_nodes, num_edges, kind):
    references = {contract_greedily: _contract_slowly, partition_by_mutexes: _flood_slowly}
    for seed in range(6):
        edges, weights = _make_graph(num_nodes, num_edges, kind, seed)
        if kind != "ties":  # sums in another order: no two of them are close
            weights = (weights * 2**20).round() / 2**20
        for partition, reference in references.items():
            found = partition(edges, weights, num_nodes)
            assert found.dtype == torch.long and found.shape == (num_nodes,)
            assert torch.equal(found, reference(edges, weights, num_nodes))


@pytest.mark.skipif(not extension.IS_BUILT, reason="instancezoo._C was not built")
@BOTH
@pytest.mark.parametrize("kind", ["plain", "ties", "attractive"])
def test_both_versions_agree_on_large_graphs(partition, kind, monkeypatch):
    edges, weights = _make_graph(3000, 15000, kind)
    compiled = partition(edges, weights, 3000)
    monkeypatch.setattr(extension, "IS_BUILT", False)
    assert torch.equal(compiled, partition(edges, weights, 3000))


def _make_library_graph(edges, weights, num_nodes):
    graphs = pytest.importorskip("bioimage_cpp", reason="no bioimage-cpp: extra 'graph'").graph
    totals = _list_weights(edges, weights)
    pairs = np.array(sorted(totals), dtype=np.uint64)
    costs = np.array([totals[tuple(pair)] for pair in pairs.tolist()])
    return graphs, pairs, costs


def test_contraction_equals_a_librarys():
    edges, weights = _make_graph(2000, 12000, "plain")
    graphs, pairs, costs = _make_library_graph(edges, weights, 2000)
    graph = graphs.UndirectedGraph.from_unique_edges(2000, pairs)
    objective = graphs.multicut.MulticutObjective(graph, costs)
    expected = graphs.multicut.GreedyAdditiveMulticut().optimize(objective).astype(np.int64)
    found = contract_greedily(edges, weights, 2000)
    assert 10 < int(found.max()) < 1900
    both = torch.stack([found, torch.from_numpy(expected)], dim=1).unique(dim=0)
    assert len(both) == found.max() + 1 == len(np.unique(expected))


def test_mutex_watershed_equals_a_librarys():
    edges, weights = _make_graph(2000, 12000, "attractive")
    graphs, pairs, costs = _make_library_graph(edges, weights, 2000)
    graph = graphs.UndirectedGraph.from_unique_edges(2000, pairs[costs > 0])
    repulsive = costs < 0
    expected = graphs.mutex_watershed.mutex_watershed_clustering(
        graph, costs[costs > 0], pairs[repulsive], -costs[repulsive]
    )
    found = partition_by_mutexes(edges, weights, 2000)
    assert 10 < int(found.max()) < 1900
    assert np.array_equal(found.numpy(), expected.astype(np.int64))


@BOTH
def test_what_has_no_weight_joins_nothing(op_version, partition):
    edges = torch.tensor([[0, 1], [1, 2], [2, 3], [0, 0], [3, 4], [4, 3]])
    weights = torch.tensor([0.0, torch.nan, 1.0, 9.0, 2.0, -2.0])
    assert partition(edges, weights, 6).tolist() == [0, 1, 2, 2, 3, 4]


def test_a_greedy_partition_is_cheaper_than_none_and_than_one_part():
    edges, weights = _make_graph(200, 2000, "plain")
    found = sum_cut_weights(edges, weights, contract_greedily(edges, weights, 200))
    assert found < sum_cut_weights(edges, weights, torch.arange(200))
    assert found < sum_cut_weights(edges, weights, torch.zeros(200, dtype=torch.long)) == 0


@BOTH
def test_a_graph_that_is_not_contiguous(op_version, partition):
    edges, weights = _make_graph(50, 200, "plain")
    strided = torch.stack([edges, edges + 1], dim=2)[..., 0]
    wide = torch.stack([weights, weights], dim=1)[:, 1]
    assert torch.equal(partition(strided, wide, 50), partition(edges, weights, 50))


@pytest.mark.skipif(not extension.IS_BUILT, reason="instancezoo._C was not built")
@pytest.mark.parametrize("name", ["contract_greedily", "partition_by_mutexes"])
def test_operators_are_well_registered(name):
    operator = extension.find_compiled(name, CPU)
    edges, weights = _make_graph(30, 90, "plain")
    torch.library.opcheck(operator.default, (edges, weights, 30))
    with pytest.raises(RuntimeError, match="between the 20 nodes"):
        operator(edges, weights, 20)
    with pytest.raises(RuntimeError, match="between the 30 nodes"):
        operator(edges - 40, weights, 30)
    with pytest.raises(RuntimeError, match=r"\(E, 2\) int64"):
        operator(edges, weights[1:], 30)
    with pytest.raises(RuntimeError, match=r"\(E,\) double"):
        operator(edges, weights.float(), 30)
    with pytest.raises(RuntimeError, match="fewer than"):
        operator(edges, weights, -1)
