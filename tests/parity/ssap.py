"""SSAP against the fixture of the formulas, in double precision.

No weights were ever published: there is no checkpoint, and each stage starts from stored arrays.
Channel 0 of the fixture is the background, which is the last channel here.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor

from instancezoo.layers.affinities import (
    affinity_loss,
    compare_neighbours,
    find_pairs,
    weigh_pairs,
)
from instancezoo.layers.double import find_double_device
from instancezoo.modeling.grouping import Segments, vote_classes
from instancezoo.modeling.object_maps import ObjectMaps
from instancezoo.ssap import ssap
from instancezoo.ssap.cascade import (
    PARTITIONS,
    LevelMaps,
    drop_segments,
    number_nodes,
    partition_levels,
)
from instancezoo.ssap.head import PyramidMaps
from instancezoo.testing import get_tiny_config

from .fixtures import LOSSES, Fixture

STATED = {"float64": 1e-9, "float32 losses": LOSSES, "segments": "exact in float64"}


class SSAPParity:
    """One fixture; each `check_*` is a stage, in the order of computation."""

    stages = (
        "targets",
        "losses",
        "losses_of_the_model",
        "edges",
        "partitions",
        "flat_partition",
        "instances",
    )

    def __init__(self, fixture: Fixture) -> None:
        fixture.check_stated(STATED)
        self.fixture, self.arrays = fixture, fixture.arrays
        self.config = fixture.spec["config"]
        self.num_levels, self.window = self.config["levels"], self.config["window"]
        self.device = find_double_device(torch.device("cpu"))
        self.ids = torch.from_numpy(self.arrays["labels"]).long()
        # The classes of the objects count from 1 on; the background comes last here.
        classes = torch.from_numpy(self.arrays["classes"]).long() - 1
        self.table = torch.cat([classes.new_tensor([self.config["C"] - 1]), classes])

    def check_targets(self) -> None:
        for level in range(self.num_levels):
            is_same, is_pair = self._compare(level)
            assert torch.equal(is_same[0], self._unpack(f"aff_target_{level}"))
            assert torch.equal(is_pair[0], self._unpack(f"aff_valid_{level}"))

    def check_losses(self) -> None:
        total = 0.0
        for level, weight in enumerate(self.config["lam"]):
            affinities, semantic = self._losses(level)
            self._check(f"loss_aff_{level}", affinities)
            self._check(f"loss_sem_{level}", semantic)
            total = total + semantic + weight * affinities
        self._check("loss_total", torch.as_tensor(total))

    def check_losses_of_the_model(self) -> None:
        """In single precision, from maps of the network's form; the random drop is the stored."""
        model = build_model(self._make_cfg())
        ids = self.ids[None]
        targets = ObjectMaps(ids, self.table[ids], (len(self.table) - 1,))
        levels = range(self.num_levels)
        maps = PyramidMaps(
            [self._read_classes(level).float()[None] for level in levels],
            [self._read(f"aff_logits_{level}").float()[None] for level in levels],
        )
        drops = [self._unpack(f"aff_drop_{level}")[None] for level in levels]
        with mock.patch.object(ssap, "drop_positives", side_effect=drops):
            losses = model.losses(maps, targets)
        for level, weight in enumerate(self.config["lam"]):
            name = model.in_features[level]
            self.fixture.check_loss(f"loss_sem_{level}", losses[f"loss_sem_{name}"])
            self.fixture.check_loss(f"loss_aff_{level}", losses[f"loss_affinity_{name}"] / weight)
        self.fixture.check_loss("loss_total", sum(losses.values()))

    def check_edges(self) -> None:
        coarsest = self.num_levels - 1
        level = self._make_level(coarsest)
        nodes = number_nodes(level.foreground, torch.zeros_like(level.foreground, dtype=torch.long))
        pairs = find_pairs(nodes, self.window)
        edges = nodes.flatten()[torch.stack([pairs.first, pairs.second], dim=1)]
        self.fixture.check_exact(f"edge_nodes_{coarsest}", edges)
        weights = weigh_pairs(level.affinity_logits, level.probs, pairs, eps=self.config["eps"])
        self._check(f"edge_weights_{coarsest}", weights)

    def check_partitions(self) -> None:
        levels = [self._make_level(level) for level in range(self.num_levels)]
        num_nodes: list[int] = []

        def count(edges: Tensor, weights: Tensor, nodes: int) -> Tensor:
            num_nodes.insert(0, nodes)
            return PARTITIONS["gaec"](edges, weights, nodes)

        found = partition_levels(levels, window=self.window, partition=count)
        for level in reversed(range(self.num_levels)):
            self.fixture.check_exact(f"segments_{level}", found[level])
            contractions = num_nodes[level] - int(found[level].max())
            assert contractions == self.arrays[f"contractions_{level}"]

    def check_flat_partition(self) -> None:
        (flat,) = partition_levels(
            [self._make_level(0)], window=self.window, partition=PARTITIONS["gaec"]
        )
        self.fixture.check_exact("segments_flat", flat)

    def check_instances(self) -> None:
        level = self._make_level(0)
        labels = torch.from_numpy(self.arrays["segments_0"]).long()
        labels = drop_segments(labels, level.foreground, self.config["min_size"])
        self.fixture.check_exact("instance_map", labels)
        segments = Segments.from_labels(labels, level.probs.new_ones(int(labels.max())))
        classes, scores = vote_classes(level.probs, segments, level.foreground)
        self.fixture.check_exact("instance_class", classes + 1)
        self._check("instance_score", scores)

    def _make_cfg(self) -> object:
        names = [f"p{level + 2}" for level in range(self.num_levels)]
        keys = {
            "NUM_CLASSES": self.config["C"] - 1,
            "IN_FEATURES": names,
            "WINDOW": self.window,
            "SEM_LOSS_WEIGHTS": [1.0] * self.num_levels,
            "AFFINITY_LOSS_WEIGHTS": self.config["lam"],
            "OBJECT_WEIGHT": self.config["object_weight"],
            "POSITIVE_DROP": self.config["positive_drop"],
        }
        words = [word for key, value in keys.items() for word in (f"MODEL.SSAP.{key}", value)]
        return get_tiny_config("ssap/ssap_tiny", words)

    def _make_level(self, level: int) -> LevelMaps:
        probs = self._read_classes(level).softmax(dim=0)
        foreground = ssap.find_foreground(probs, 0.0)
        return LevelMaps(self._read(f"aff_logits_{level}"), probs, foreground)

    def _losses(self, level: int) -> tuple[Tensor, Tensor]:
        """Of the affinities and of the classes; both also have the gradient of the formula."""
        affinity_logits = self._read(f"aff_logits_{level}")[None].requires_grad_()
        is_same, is_pair = self._compare(level)
        is_dropped = self._unpack(f"aff_drop_{level}")[None]
        assert (is_same | ~is_dropped).all()
        is_object, weight = self._sample(level)[None] > 0, self.config["object_weight"]
        loss = affinity_loss(
            affinity_logits, is_same, is_pair, is_dropped, is_object, object_weight=weight
        )
        (gradient,) = torch.autograd.grad(loss, affinity_logits)
        affinities = affinity_logits.detach().sigmoid()
        factor = torch.where(is_object, weight, 1.0)[:, None] * (is_pair & ~is_dropped)
        expected = 2 * factor * (affinities - is_same.double()) * affinities * (1 - affinities)
        torch.testing.assert_close(gradient, expected / is_pair.sum(), rtol=0, atol=1e-12)
        semantic = F.cross_entropy(
            self._read_classes(level)[None], self.table[self._sample(level)][None]
        )
        return loss.detach(), semantic

    def _compare(self, level: int) -> tuple[Tensor, Tensor]:
        ids = self._sample(level)[None]
        return compare_neighbours(ids, torch.ones_like(ids, dtype=torch.bool), self.window)

    def _sample(self, level: int) -> Tensor:
        return self.ids[:: 2**level, :: 2**level]

    def _read_classes(self, level: int) -> Tensor:
        """Logits with the background last."""
        return self._read(f"sem_logits_{level}").roll(-1, dims=0)

    def _unpack(self, name: str) -> Tensor:
        """(r*r, h, w) bool of bits that were packed without regard to rows."""
        level = int(name.rpartition("_")[2])
        shape = (self.window**2, *self._sample(level).shape)
        bits = np.unpackbits(self.arrays[name])[: int(np.prod(shape))]
        return torch.from_numpy(bits.reshape(shape).astype(bool))

    def _read(self, name: str) -> Tensor:
        return torch.as_tensor(self.arrays[name]).to(self.device, torch.double)

    def _check(self, name: str, got: Tensor) -> None:
        assert got.dtype == torch.double
        tolerance = self.fixture.spec["tolerance"]["float64"]
        np.testing.assert_allclose(
            got.numpy(), self.arrays[name], rtol=0, atol=tolerance, err_msg=name
        )
