"""Mask R-CNN with semi-convolutional embeddings (Novotny et al., arXiv 1807.10712, section 4.2).

Legend: N images, L levels, R regions, K classes, D embedding size, H W map size, S mask side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from instancezoo.layers.losses import zero_of_parameters
from instancezoo.layers.semiconv import colouring_loss, kernel_loss, refine_mask_logits
from instancezoo.modeling.objects import collect_ground_truth, join_objects

from .config import check_roi_config
from .head import Coordinates, SemiConvHead, make_log_sigma
from .targets import list_level_cells

_EMBEDDING = "embedding of "  # before a map's name: its embedding


@ROI_MASK_HEAD_REGISTRY.register()
class SemiConvMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's mask head, whose logits are lowered where the embedding is not the seed's.

    Args:
        seed, kernel: see `refine_mask_logits`.
        kernel_weight: of `loss_kernel`.
        args, kwargs: those of `MaskRCNNConvUpsampleHead`.
    """

    @configurable
    def __init__(
        self, *args: Any, seed: str, kernel: str, kernel_weight: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.kernel = kernel
        self.kernel_weight = kernel_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.SEMICONV
        return {
            **super().from_config(cfg, input_shape),
            "seed": node.SEED,
            "kernel": node.KERNEL,
            "kernel_weight": node.KERNEL_LOSS_WEIGHT,
        }

    def forward(
        self,
        features: Tensor,
        instances: list[Instances],
        embeddings: Tensor | None = None,
        log_sigma: Tensor | None = None,
    ) -> Any:
        """As in Detectron2.

        Args:
            features: (R, C, S / 2, S / 2).
            instances: R regions in N images, in training with ground truth.
            embeddings: (R, D, S, S), Psi of the regions.
            log_sigma: (), logarithm of the kernel's bandwidth.
        """
        if embeddings is None or log_sigma is None:
            raise TypeError("SemiConvMaskHead needs embeddings, which SemiConvROIHeads gives it")
        mask_logits = self.layers(features)  # (R, K, S, S)
        name = "gt_classes" if self.training else "pred_classes"
        classes = torch.cat([found.get(name) for found in instances]).long()
        if mask_logits.shape[1] == 1:  # one mask for all classes
            classes = torch.zeros_like(classes)
        rows = torch.arange(len(classes), device=classes.device)
        refined, exponents = refine_mask_logits(
            mask_logits[rows, classes], embeddings, log_sigma, seed=self.seed, kernel=self.kernel
        )
        if self.training:
            return self.compute_losses(refined, exponents, instances)
        counts = [len(found) for found in instances]
        for found, probs in zip(instances, refined.sigmoid()[:, None].split(counts), strict=True):
            found.pred_masks = probs  # (R of the image, 1, S, S)
        return instances

    def compute_losses(
        self, refined: Tensor, exponents: Tensor, instances: list[Instances]
    ) -> dict[str, Tensor]:
        """`loss_mask` and `loss_kernel`, means over regions and cells.

        Args:
            refined, exponents: as `refine_mask_logits` returns them.
            instances: R regions with `proposal_boxes` and `gt_masks`.
        """
        if len(refined) == 0:
            return {"loss_mask": refined.sum(), "loss_kernel": exponents.sum()}
        targets = torch.cat(
            [
                found.gt_masks.crop_and_resize(found.proposal_boxes.tensor, refined.shape[2])
                for found in instances
                if len(found)
            ]
        ).to(refined)
        loss_mask = F.binary_cross_entropy_with_logits(refined, targets)
        return {
            "loss_mask": loss_mask * self.loss_weight,
            "loss_kernel": kernel_loss(exponents, targets > 0.5).mean() * self.kernel_weight,
        }


@ROI_HEADS_REGISTRY.register()
class SemiConvROIHeads(StandardROIHeads):
    """Box and mask heads of Mask R-CNN, and an embedding of all pixels for the mask head.

    Args:
        semiconv_head: `SemiConvHead`, L maps -> their embeddings; None without masks.
        semiconv_in_features: names of these maps.
        semiconv_pooler: `ROIPooler` that crops regions out of the embeddings.
        sigma: bandwidth that the kernel starts with.
        embed_weight: of `loss_embed`.
        embed_reduction: see `colouring_loss`.
        kwargs: those of `StandardROIHeads`.
    """

    # What a Mask R-CNN lacks whose weights the training starts from.
    new_parts = ("semiconv_head.", "log_sigma")

    @configurable
    def __init__(
        self,
        *,
        semiconv_head: Any = None,
        semiconv_in_features: list[str] | None = None,
        semiconv_pooler: Any = None,
        sigma: float = 1.0,
        embed_weight: float = 1.0,
        embed_reduction: str = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.mask_on:
            self.semiconv_head = semiconv_head
            self.semiconv_in_features = semiconv_in_features or []
            self.semiconv_pooler = semiconv_pooler
            self.log_sigma = make_log_sigma(sigma)
        self.embed_weight = embed_weight
        self.embed_reduction = embed_reduction

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        check_roi_config(cfg, input_shape)
        return {
            **super().from_config(cfg, input_shape),
            "sigma": cfg.MODEL.SEMICONV.SIGMA_INIT,
            "embed_weight": cfg.MODEL.SEMICONV.EMBED_LOSS_WEIGHT,
            "embed_reduction": cfg.MODEL.SEMICONV.EMBED_LOSS_REDUCE,
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_mask_head(cfg, input_shape)
        if not arguments:
            return arguments
        node = cfg.MODEL.SEMICONV
        names = list(node.IN_FEATURES)
        strides = [input_shape[name].stride or 1 for name in names]
        arguments["semiconv_in_features"] = names
        arguments["semiconv_head"] = SemiConvHead(
            in_channels=input_shape[names[0]].channels or 1,
            hidden_channels=node.HIDDEN_DIM,
            embed_dim=node.EMBED_DIM,
            strides=strides,
            coordinates=Coordinates(mode=node.COORD_MODE, unit=node.COORD_UNIT),
            grad_scale=node.GRAD_SCALE,
        )
        arguments["semiconv_pooler"] = ROIPooler(
            output_size=2 * cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION,  # that of the mask's logits
            scales=[1 / stride for stride in strides],
            sampling_ratio=0,
            pooler_type="ROIAlignV2",
        )
        return arguments

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """As in `StandardROIHeads`, with `loss_embed`."""
        if not (self.training and self.mask_on):
            return super().forward(images, features, proposals, targets)
        maps = self._embed(features)
        embedded = {_EMBEDDING + n: m for n, m in zip(self.semiconv_in_features, maps, strict=True)}
        found, losses = super().forward(images, {**features, **embedded}, proposals, targets)
        return found, {**losses, "loss_embed": self._compute_embed_loss(maps, targets or [])}

    def _embed(self, features: dict[str, Tensor]) -> list[Tensor]:
        """L embeddings (N, D, H, W); in training they are computed once for all losses."""
        names = self.semiconv_in_features
        if _EMBEDDING + names[0] in features:
            return [features[_EMBEDDING + name] for name in names]
        maps: list[Tensor] = self.semiconv_head([features[name] for name in names])
        return maps

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        pooled = self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
        crops = self.semiconv_pooler(self._embed(features), boxes)  # (R, D, S, S)
        return self.mask_head(pooled, instances, crops, self.log_sigma)

    def _compute_embed_loss(self, maps: list[Tensor], targets: list[Instances]) -> Tensor:
        """Equation 5 on each level, for the objects that the pooler takes from it."""
        head, pooler = self.semiconv_head, self.semiconv_pooler
        zero = zero_of_parameters(head) + 0 * self.log_sigma
        objects = join_objects(
            collect_ground_truth([{"instances": found} for found in targets], maps[0].device)
        )
        levels = assign_boxes_to_levels(
            [Boxes(objects.boxes)],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        sizes = [(one.shape[2], one.shape[3]) for one in maps]
        owners, images, cells = list_level_cells(objects, levels, head.strides, sizes)
        by_cell = torch.cat([one.flatten(2) for one in maps], dim=2)  # (N, D, cells of all levels)
        colours = by_cell.transpose(1, 2)[images, cells]  # (P, D)
        loss = colouring_loss(colours, owners, len(levels), reduction=self.embed_reduction)
        if self.embed_reduction == "sum":
            loss = loss / objects.num_images
        return loss * self.embed_weight + zero
