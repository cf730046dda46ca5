"""Affinities to neighbours on a pyramid, partitioned from coarse to fine (SSAP, arXiv 1909.01616).

Legend: N images, K classes, L levels, M segments, h w size of the finest map, r side of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor

from instancezoo.layers.affinities import affinity_loss, compare_neighbours, drop_positives
from instancezoo.modeling.grouping import (
    BottomUpSegmenter,
    Segments,
    read_group_arguments,
    vote_classes,
)
from instancezoo.modeling.object_maps import IGNORED, ObjectMaps, semantic_loss

from .cascade import PARTITIONS, LevelMaps, drop_segments, partition_levels
from .config import check_ssap_config
from .head import PyramidMaps, SSAPHead


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses; keys of MODEL.SSAP of the same meaning."""

    semantic: tuple[float, ...]
    affinity: tuple[float, ...]
    positive_drop: float
    object_weight: float


@dataclass(frozen=True)
class GraphSettings:
    """How graphs are built and partitioned; keys of MODEL.SSAP of the same meaning."""

    cascade: bool
    partition: str
    foreground_margin: float
    min_size: int


@META_ARCH_REGISTRY.register()
class SSAP(BottomUpSegmenter[PyramidMaps, ObjectMaps]):
    """Finds objects as parts of graphs whose edges are affinities of near cells.

    Args:
        window: r.
        loss_settings: weights of the losses.
        graph_settings: how graphs are built and partitioned.
        kwargs: those of `BottomUpSegmenter`.
    """

    @configurable
    def __init__(
        self,
        *,
        window: int,
        loss_settings: LossSettings,
        graph_settings: GraphSettings,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.window = window
        self.loss_settings = loss_settings
        self.graph_settings = graph_settings

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        shapes = arguments["backbone"].output_shape()
        check_ssap_config(cfg, shapes)
        node = cfg.MODEL.SSAP
        finest = shapes[node.IN_FEATURES[0]]
        head = SSAPHead(
            in_channels=finest.channels,
            channels=node.CONVS_DIM,
            num_convs=node.NUM_CONVS,
            num_classes=node.NUM_CLASSES,
            window=node.WINDOW,
            norm=node.NORM,
        )
        return {
            **read_group_arguments(arguments, node, node.IN_FEATURES),
            "head": head,
            "stride": finest.stride,
            "window": node.WINDOW,
            "loss_settings": LossSettings(
                semantic=tuple(node.SEM_LOSS_WEIGHTS),
                affinity=tuple(node.AFFINITY_LOSS_WEIGHTS),
                positive_drop=node.POSITIVE_DROP,
                object_weight=node.OBJECT_WEIGHT,
            ),
            "graph_settings": GraphSettings(
                cascade=node.CASCADE,
                partition=node.PARTITION,
                foreground_margin=node.FG_MARGIN,
                min_size=node.MIN_SIZE,
            ),
        }

    def assign(
        self, outputs: PyramidMaps, images: ImageList, ground_truth: list[Instances]
    ) -> ObjectMaps:
        """The objects on the finest grid; crowds and padding are ignored."""
        return self.paint(images, ground_truth)

    def losses(self, outputs: PyramidMaps, targets: ObjectMaps) -> dict[str, Tensor]:
        """`loss_sem_p2`, ... and `loss_affinity_p2`, ..., one of each a level."""
        settings, losses = self.loss_settings, {}
        levels = zip(self.in_features, outputs.cls_logits, outputs.affinity_logits, strict=True)
        for level, (name, cls_logits, affinity_logits) in enumerate(levels):
            step = 2**level
            ids, classes = (m[:, ::step, ::step] for m in (targets.ids, targets.classes))
            is_counted = classes != IGNORED
            is_same, is_pair = compare_neighbours(ids, is_counted, self.window)
            error = affinity_loss(
                affinity_logits.float(),
                is_same,
                is_pair,
                drop_positives(is_same, settings.positive_drop),
                ids > 0,
                object_weight=settings.object_weight,
            )
            losses[f"loss_sem_{name}"] = settings.semantic[level] * semantic_loss(
                cls_logits, classes
            )
            losses[f"loss_affinity_{name}"] = settings.affinity[level] * error
        return losses

    def group(self, maps: PyramidMaps, index: int, grid: tuple[int, int]) -> Segments:
        """Partition the graphs; segments too small or without a class are dropped."""
        settings = self.graph_settings
        num_levels = len(maps.cls_logits) if settings.cascade else 1
        levels = [self._read_level(maps, index, grid, level) for level in range(num_levels)]
        labels = partition_levels(
            levels, window=self.window, partition=PARTITIONS[settings.partition]
        )[0]
        labels = drop_segments(labels, levels[0].foreground, settings.min_size)
        confidences = levels[0].probs.new_ones(int(labels.max()))
        return Segments.from_labels(labels, confidences)

    def describe(self, maps: PyramidMaps, index: int, segments: Segments) -> tuple[Tensor, Tensor]:
        """The class that most foreground cells vote for, and its mean probability.

        Cells of the background, of which the cascade may have given a segment some, have no vote.
        """
        level = self._read_level(maps, index, segments.grid, 0)
        return vote_classes(level.probs, segments, level.foreground)

    def predict_classes(self, maps: PyramidMaps, index: int, grid: Sequence[int]) -> Tensor:
        """Softmax of the finest semantic branch, (K + 1, h, w)."""
        return self._read_level(maps, index, grid, 0).probs

    def _read_level(
        self, maps: PyramidMaps, index: int, grid: Sequence[int], level: int
    ) -> LevelMaps:
        """Cells of a level that are not of the padding only."""
        height, width = (-(-side // 2**level) for side in grid)
        logits = maps.cls_logits[level][index, :, :height, :width]
        affinities = maps.affinity_logits[level][index, :, :height, :width]
        probs = logits.float().softmax(dim=0)
        foreground = find_foreground(probs, self.graph_settings.foreground_margin)
        return LevelMaps(affinities.float(), probs, foreground)


def find_foreground(probs: Tensor, margin: float) -> Tensor:
    """Cells with a class that is more probable than the background, by more than a margin.

    Args:
        probs: (K + 1, h, w), the background last.
        margin: in [-1, 1].

    Returns:
        (h, w) bool
    """
    return probs[:-1].amax(dim=0) - probs[-1] > margin
