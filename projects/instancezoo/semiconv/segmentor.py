"""Instance colouring with semi-convolutional embeddings (Novotny et al., arXiv 1807.10712).

Legend: N images, D embedding size, K classes, M segments, P pixels, h w grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.structures import ImageList, Instances
from torch import Tensor

from instancezoo.layers.clustering import (
    Clusters,
    cluster_k_means,
    cluster_votes,
    drop_small,
    group_greedily,
)
from instancezoo.layers.embeddings import repulsion_loss
from instancezoo.layers.losses import zero_of_parameters
from instancezoo.layers.owners import average_by_owner
from instancezoo.layers.semiconv import (
    colouring_loss,
    find_radius,
    measure_exponents,
)
from instancezoo.modeling.grouping import BottomUpSegmenter, Segments, read_group_arguments
from instancezoo.modeling.object_maps import ObjectMaps, semantic_loss

from .config import check_segmentor_config
from .head import Coordinates, PixelMaps, SemiConvPixelHead
from .losses import sample_kernel_cells, similarity_loss


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses; keys of MODEL.SEMICONV of the same meaning."""

    semantic: float = 1.0
    embed: float = 1.0
    embed_reduction: str = "mean"
    kernel: float = 1.0
    push: float = 0.0
    push_margin: float = 1.5


@dataclass(frozen=True)
class GroupingSettings:
    """How pixels are grouped; keys of MODEL.SEMICONV of the same meaning."""

    method: str = "greedy"
    foreground_thresh: float = 0.5
    seed_thresh: float = 0.6
    member_thresh: float = 0.5
    num_shifts: int = 3
    min_size: int = 8
    max_misses: int = 1000
    vote_window: int = 5
    vote_min: int = 8


@META_ARCH_REGISTRY.register()
class SemiConvSegmentor(BottomUpSegmenter[PixelMaps, ObjectMaps]):
    """Gives the pixels of an object one colour by position and appearance, and groups by colour.

    Args:
        kernel: of the similarity, see `measure_exponents`.
        loss_settings: weights of the losses.
        grouping: how pixels are grouped.
        kwargs: those of `BottomUpSegmenter`.
    """

    head: SemiConvPixelHead

    @configurable
    def __init__(
        self,
        *,
        kernel: str,
        loss_settings: LossSettings,
        grouping: GroupingSettings,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel = kernel
        self.loss_settings = loss_settings
        self.grouping = grouping

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        shapes = arguments["backbone"].output_shape()
        check_segmentor_config(cfg, shapes)
        node = cfg.MODEL.SEMICONV
        return {
            **read_group_arguments(arguments, node, node.IN_FEATURES),
            "head": _build_head(node, {name: shapes[name] for name in node.IN_FEATURES}),
            "stride": node.STRIDE,
            "kernel": node.KERNEL,
            "loss_settings": LossSettings(
                semantic=node.SEM_LOSS_WEIGHT,
                embed=node.EMBED_LOSS_WEIGHT,
                embed_reduction=node.EMBED_LOSS_REDUCE,
                kernel=node.KERNEL_LOSS_WEIGHT,
                push=node.PUSH_LOSS_WEIGHT,
                push_margin=node.PUSH_MARGIN,
            ),
            "grouping": GroupingSettings(
                method=node.GROUPING,
                foreground_thresh=node.T_FG,
                seed_thresh=node.T_SEED,
                member_thresh=node.T_MEMBER,
                num_shifts=node.N_SHIFT,
                min_size=node.MIN_SIZE,
                max_misses=node.MAX_MISSES,
                vote_window=node.VOTE_WINDOW,
                vote_min=node.VOTE_MIN,
            ),
        }

    def assign(
        self, outputs: PixelMaps, images: ImageList, ground_truth: list[Instances]
    ) -> ObjectMaps:
        """The objects on the grid; crowds and padding are ignored."""
        return self.paint(images, ground_truth)

    def losses(self, outputs: PixelMaps, targets: ObjectMaps) -> dict[str, Tensor]:
        """`loss_sem_seg`, `loss_embed` (equation 5), `loss_kernel`, optionally `loss_push`."""
        weights, embeddings = self.loss_settings, outputs.embeddings
        zero = zero_of_parameters(self.head)
        loss_sem_seg = semantic_loss(outputs.cls_logits, targets.classes)

        owner, image, y, x = targets.list_cells()
        num_instances = sum(targets.counts)
        colours = embeddings.permute(0, 2, 3, 1)[image, y, x]  # (P, D)
        reduction = weights.embed_reduction
        loss_embed = colouring_loss(colours, owner, num_instances, reduction=reduction)
        if reduction == "sum":
            loss_embed = loss_embed / len(targets.counts)
        chosen = sample_kernel_cells(targets)
        loss_kernel = similarity_loss(embeddings, outputs.log_sigma, chosen, self.kernel)
        losses = {
            "loss_sem_seg": weights.semantic * loss_sem_seg + zero,
            "loss_embed": weights.embed * loss_embed,
            "loss_kernel": weights.kernel * loss_kernel,
        }
        if weights.push:
            present, number = owner.unique(return_inverse=True)
            means = average_by_owner(colours, number, len(present))
            images = average_by_owner(image.float(), number, len(present)).round()
            push = repulsion_loss(means, images, margin=weights.push_margin)
            losses["loss_push"] = weights.push * push / len(targets.counts)
        return losses

    def predict_classes(self, maps: PixelMaps, index: int, grid: tuple[int, int]) -> Tensor:
        """Softmax of the semantic branch, (K + 1, h, w)."""
        return maps.cls_logits[index, :, : grid[0], : grid[1]].float().softmax(dim=0)

    def group(self, maps: PixelMaps, index: int, grid: tuple[int, int]) -> Segments:
        """Group the foreground; a segment's confidence is its mean similarity to its centre."""
        scores = 1 - self.predict_classes(maps, index, grid)[-1].flatten()
        embeddings = maps.embeddings[index, :, : grid[0], : grid[1]].flatten(1)  # (D, h*w)
        pixels = (scores >= self.grouping.foreground_thresh).nonzero().squeeze(1)
        points = embeddings[:, pixels]  # (D, P)
        clusters = self._cluster(points.detach(), scores[pixels].detach(), maps, grid)
        labels = torch.zeros_like(scores, dtype=torch.long)
        labels[pixels] = clusters.labels
        taken = clusters.labels.nonzero().squeeze(1)
        owners = clusters.labels[taken] - 1
        differences = points[:, taken].T - clusters.centres[owners]
        exponents = measure_exponents(differences, maps.log_sigma, dim=1, kernel=self.kernel)
        confidences = average_by_owner((-exponents).exp(), owners, len(clusters.centres))
        return Segments.from_labels(labels.view(grid), confidences)

    def _cluster(
        self, points: Tensor, scores: Tensor, maps: PixelMaps, grid: tuple[int, int]
    ) -> Clusters:
        """Clusters of pixels (D, P) with foreground scores (P,)."""
        settings, most = self.grouping, self.decode_settings.max_per_image
        if settings.method == "votes":
            votes = cluster_votes(
                self.head.coordinates.find_cells(points[:2], self.stride),
                grid,
                window=settings.vote_window,
                min_votes=settings.vote_min,
                max_clusters=most,
            )
            clusters = drop_small(votes, settings.min_size)
            means = average_by_owner(points.T, clusters.labels, len(clusters.centres) + 1)
            return replace(clusters, centres=means[1:])
        clusters = group_greedily(
            points,
            scores,
            radius=find_radius(
                float(maps.log_sigma.detach().exp()), settings.member_thresh, self.kernel
            ),
            seed_thresh=settings.seed_thresh,
            num_shifts=settings.num_shifts,
            min_size=settings.min_size,
            max_clusters=most,
            max_misses=settings.max_misses,
        )
        if settings.method == "kmeans" and len(clusters.centres):
            return drop_small(cluster_k_means(points, clusters.centres), settings.min_size)
        return clusters


def _build_head(node: CfgNode, shapes: dict[str, ShapeSpec]) -> SemiConvPixelHead:
    """Build both branches on maps of these shapes, as `cfg.MODEL.SEMICONV` configures them."""
    semantic, embedding = (
        SemSegFPNHead(
            shapes,
            num_classes=num_outputs,
            conv_dims=node.CONVS_DIM,
            common_stride=node.STRIDE,
            norm=node.NORM,
        )
        for num_outputs in (node.NUM_CLASSES + 1, node.EMBED_DIM)
    )
    return SemiConvPixelHead(
        in_features=node.IN_FEATURES,
        semantic=semantic,
        embedding=embedding,
        coordinates=Coordinates(mode=node.COORD_MODE, unit=node.COORD_UNIT),
        sigma=node.SIGMA_INIT,
    )
