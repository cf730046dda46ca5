"""Deep metric learning (Fathi et al., arXiv 1703.10277).

Legend: N images, D embedding size, T thresholds, K classes, M segments, P pixels, h w grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from instancezoo.layers.clustering import cluster_mean_shift
from instancezoo.layers.losses import zero_of_parameters
from instancezoo.layers.metric import measure_similarity
from instancezoo.layers.owners import average_by_owner
from instancezoo.modeling.grouping import BottomUpSegmenter, Segments, read_group_arguments
from instancezoo.modeling.masks import ImageMasks, MaskForm, remove_padding
from instancezoo.modeling.object_maps import ObjectMaps, semantic_loss

from .config import check_metric_config
from .head import MetricHead, MetricMaps
from .losses import (
    LossSettings,
    compute_discriminative_loss,
    compute_embed_loss,
    compute_seed_loss,
    sample_points,
)
from .seeds import SeedSegments, SeedSettings, grow_segments
from .targets import Points


@dataclass(frozen=True)
class MeanShiftSettings:
    """Keys of MODEL.METRIC of the same meaning."""

    bandwidth: float = 0.5
    foreground_thresh: float = 0.5
    min_size: int = 8
    max_misses: int = 1000


@META_ARCH_REGISTRY.register()
class DeepMetricLearning(BottomUpSegmenter[MetricMaps, ObjectMaps]):
    """Learns which pixels are of one object; masks are the pixels similar to chosen seeds.

    Args:
        grouping: "seeds", or "meanshift" of the foreground.
        loss_settings: weights and samples of the losses.
        seeds: how seeds are chosen; its `taus` belong to the head's classifiers.
        mean_shift: how clusters are found.
        kwargs: those of `BottomUpSegmenter`.
    """

    head: MetricHead

    @configurable
    def __init__(
        self,
        *,
        grouping: str,
        loss_settings: LossSettings,
        seeds: SeedSettings,
        mean_shift: MeanShiftSettings,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.grouping = grouping
        self.loss_settings = loss_settings
        self.seeds = seeds
        self.mean_shift = mean_shift

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        shapes = arguments["backbone"].output_shape()
        check_metric_config(cfg, shapes)
        node = cfg.MODEL.METRIC
        return {
            **read_group_arguments(arguments, node, node.IN_FEATURES),
            "head": _build_head(node, {name: shapes[name] for name in node.IN_FEATURES}),
            "stride": node.STRIDE,
            "grouping": node.GROUPING,
            "loss_settings": _read_losses(node, cfg.SOLVER.MAX_ITER),
            "seeds": SeedSettings(
                taus=tuple(node.SEED_THRESHS),
                alpha=node.SEED_ALPHA,
                max_seeds=node.MAX_SEEDS,
                min_objective=node.MIN_OBJECTIVE,
                nms_thresh=node.NMS_THRESH,
                nms_per_class=node.NMS_PER_CLASS,
                foreground_only=node.FG_INTERSECT,
                foreground_thresh=node.T_FG,
                max_segments=node.MAX_INSTANCES,
            ),
            "mean_shift": MeanShiftSettings(
                bandwidth=node.BANDWIDTH,
                foreground_thresh=node.T_FG,
                min_size=node.MIN_SIZE,
                max_misses=node.MAX_MISSES,
            ),
        }

    def assign(
        self, outputs: MetricMaps, images: ImageList, ground_truth: list[Instances]
    ) -> ObjectMaps:
        """The objects on the grid; crowds and padding are ignored."""
        return self.paint(images, ground_truth)

    def losses(self, outputs: MetricMaps, targets: ObjectMaps) -> dict[str, Tensor]:
        """`loss_embed` (equation 2), and `loss_seed` (equation 5) or `loss_sem_seg`."""
        settings = self.loss_settings
        zero = zero_of_parameters(self.head)
        points, others = sample_points(targets, self.num_classes, settings)
        every = Points.cat([points, others])
        if settings.kind == "discriminative":
            loss_embed = compute_discriminative_loss(
                outputs.embeddings, targets, self.num_classes, settings
            )
        else:
            sampled = every if settings.sample_background else points
            loss_embed = compute_embed_loss(outputs.embeddings, sampled, settings)
        losses = {"loss_embed": settings.embed * loss_embed + zero}
        if self.grouping == "meanshift":
            logits = outputs.logits[:, 0].roll(-1, dims=1)  # the background last
            loss_sem_seg = semantic_loss(logits, targets.classes)
            return {**losses, "loss_sem_seg": settings.semantic * loss_sem_seg}
        loss_seed = compute_seed_loss(outputs, targets, every, self.seeds.taus, settings)
        return {**losses, "loss_seed": self._weigh_seeds() * loss_seed}

    def _weigh_seeds(self) -> float:
        """Lambda: it grows with the iteration, and is whole where nothing is learnt."""
        settings = self.loss_settings
        if not (settings.seed_ramp_iters and torch.is_grad_enabled() and has_event_storage()):
            return settings.seed
        return settings.seed * min(1.0, get_event_storage().iter / settings.seed_ramp_iters)

    def predict_classes(self, maps: MetricMaps, index: int, grid: tuple[int, int]) -> Tensor:
        """Softmax of the first classifier, (K + 1, h, w), the background last."""
        logits = maps.logits[index, 0, :, : grid[0], : grid[1]].float()
        return logits.roll(-1, dims=0).softmax(dim=0)

    def group(self, maps: MetricMaps, index: int, grid: tuple[int, int]) -> Segments:
        """Segments of seeds, or of clusters."""
        embeddings = maps.embeddings[index, :, : grid[0], : grid[1]].detach().flatten(1)
        if self.grouping == "meanshift":
            return self._shift(embeddings, self.predict_classes(maps, index, grid)[-1])
        logits = maps.logits[index, :, :, : grid[0], : grid[1]].float().flatten(2)
        return grow_segments(embeddings, logits, grid, self.seeds)

    def _shift(self, embeddings: Tensor, background: Tensor) -> Segments:
        """Clusters of the foreground; the confidence is the mean similarity to the centre."""
        settings = self.mean_shift
        foreground = 1 - background.detach()  # (h, w)
        pixels = (foreground.flatten() >= settings.foreground_thresh).nonzero().squeeze(1)
        points = embeddings[:, pixels]
        clusters = cluster_mean_shift(
            points,
            bandwidth=settings.bandwidth,
            min_size=settings.min_size,
            max_clusters=self.decode_settings.max_per_image,
            max_misses=settings.max_misses,
        )
        labels = pixels.new_zeros(foreground.numel())
        labels[pixels] = clusters.labels
        taken = clusters.labels.nonzero().squeeze(1)
        owners = clusters.labels[taken] - 1
        squares = (points[:, taken].T - clusters.centres[owners]).square().sum(dim=1)
        similarity = measure_similarity(squares)
        confidences = average_by_owner(similarity, owners, len(clusters.centres))
        return Segments.from_labels(labels.view_as(background), confidences)

    def describe(self, maps: MetricMaps, index: int, segments: Segments) -> tuple[Tensor, Tensor]:
        """Class and probability of a segment's seed, or what its cells vote for."""
        if isinstance(segments, SeedSegments):
            return segments.classes, segments.confidences
        return super().describe(maps, index, segments)

    def make_masks(self, segments: Segments, image_size: tuple[int, int]) -> MaskForm:
        """Masks of seeds end where the resized similarity passes the threshold."""
        if not isinstance(segments, SeedSegments):
            return super().make_masks(segments, image_size)
        padded_size = segments.grid[0] * self.stride, segments.grid[1] * self.stride
        steps = remove_padding(padded_size, image_size)
        return ImageMasks(segments.margins, steps, threshold=0.0, inclusive=True)


def _read_losses(node: CfgNode, max_iter: int) -> LossSettings:
    return LossSettings(
        kind=node.EMBED_LOSS,
        embed=node.EMBED_LOSS_WEIGHT,
        num_samples=node.NUM_SAMPLES,
        sample_background=node.SAMPLE_BACKGROUND,
        pair_weight=node.PAIR_WEIGHT,
        pull_margin=node.PULL_MARGIN,
        push_margin=node.PUSH_MARGIN,
        pull=node.PULL_WEIGHT,
        push=node.PUSH_WEIGHT,
        regularisation=node.REG_WEIGHT,
        seed=node.SEED_LOSS_WEIGHT,
        seed_ramp_iters=round(node.SEED_RAMP * max_iter),
        seed_iou=node.SEED_IOU,
        semantic=node.SEM_LOSS_WEIGHT,
    )


def _build_head(node: CfgNode, shapes: dict[str, ShapeSpec]) -> MetricHead:
    """Build the network on maps of these shapes, as `cfg.MODEL.METRIC` configures it."""
    trunk = SemSegFPNHead(
        shapes,
        num_classes=1,
        conv_dims=node.CONVS_DIM,
        common_stride=node.STRIDE,
        norm=node.NORM,
    )
    thresholds: Sequence[float] = node.SEED_THRESHS
    return MetricHead(
        in_features=node.IN_FEATURES,
        trunk=trunk,
        channels=node.CONVS_DIM,
        num_convs=node.NUM_CONVS,
        embed_dim=node.EMBED_DIM,
        num_classifiers=len(thresholds) if node.GROUPING == "seeds" else 1,
        num_classes=node.NUM_CLASSES,
        coord_mode=node.COORD_MODE,
        coord_unit=node.COORD_UNIT,
    )
