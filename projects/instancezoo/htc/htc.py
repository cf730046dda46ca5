"""Hybrid Task Cascade (Chen et al., arXiv 1901.07518), and Cascade Mask R-CNN as a case of it."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from instancezoo.errors import ConfigError
from instancezoo.modeling.objects import check_ground_truth
from instancezoo.modeling.rcnn import BatchImages, GeneralizedRCNNCompactMasks

from .config import META_ARCH, count_semantic_classes
from .roi_heads import HTCROIHeads
from .semantics import SemanticTargets


class LabelledImages(BatchImages):
    """The images of a training batch, with the targets of the semantic branch.

    Attributes:
        semantic_labels: (N, h, w) long; None without the branch, and in inference.
    """

    semantic_labels: Tensor | None = None


@META_ARCH_REGISTRY.register()
class HybridTaskCascadeRCNN(GeneralizedRCNNCompactMasks):
    """A two-stage model whose `HTCROIHeads` learn from semantic maps, too.

    Args:
        semantic_targets: makes these maps; None without the semantic branch.
        kwargs: those of `GeneralizedRCNNCompactMasks`.
    """

    @configurable
    def __init__(self, *, semantic_targets: SemanticTargets | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.semantic_targets = semantic_targets

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        if not isinstance(arguments["roi_heads"], HTCROIHeads):
            raise ConfigError(
                f"MODEL.ROI_HEADS.NAME is '{cfg.MODEL.ROI_HEADS.NAME}'; with "
                f"MODEL.META_ARCHITECTURE '{META_ARCH}' it must be 'HTCROIHeads' or "
                "'HTCPointRendROIHeads'"
            )
        node, shapes = cfg.MODEL.HTC, arguments["backbone"].output_shape()
        targets = None
        if node.SEMANTIC_ON:
            targets = SemanticTargets(
                source=node.SEMANTIC_TARGETS,
                num_classes=count_semantic_classes(cfg),
                num_things=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
                ignore_value=node.SEMANTIC_IGNORE_VALUE,
                stride=shapes[node.SEMANTIC_IN_FEATURES[node.SEMANTIC_FUSION_LEVEL]].stride,
            )
        return {**arguments, "semantic_targets": targets}

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> LabelledImages:
        """Normalise and pad the images; in training, label the cells of the semantic map."""
        images = super().preprocess_image(batched_inputs)
        labelled = LabelledImages(images.tensor, images.image_sizes, images.records)
        if self.training:
            check_ground_truth(batched_inputs)
            if self.semantic_targets is not None:
                labels = self.semantic_targets.make(batched_inputs, images.tensor.shape[2:])
                labelled.semantic_labels = labels.to(images.tensor.device)
        return labelled
