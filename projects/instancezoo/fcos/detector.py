"""Models made of a backbone and a proposal generator whose proposals are the detections."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, ProposalNetwork

from instancezoo.modeling.guards import is_without_images, move_images, tell_non_finite
from instancezoo.modeling.objects import check_ground_truth, leave_out_crowds
from instancezoo.modeling.whole_weights import WholeWeights

from .config import translate_fcos_keys


@META_ARCH_REGISTRY.register()
class OneStageDetector(WholeWeights, ProposalNetwork):
    """Detectron2's `ProposalNetwork` with its results as "instances"; the name is AdelaiDet's.

    `MODEL.PROPOSAL_GENERATOR.NAME` chooses the detector.

    Args:
        allow_partial: see `WholeWeights`.
        kwargs: those of `ProposalNetwork`.
    """

    keep_crowds = False  # crowds of INPUT.CROWDS are left out before training

    @configurable
    def __init__(self, *, allow_partial: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.allow_partial = allow_partial

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Train or infer on a batch in Detectron2's format.

        Args:
            batched_inputs: dicts with `image` (C, H, W), in training `instances` with `gt_boxes`
                and `gt_classes`, in inference optionally `height` and `width`, the size of the
                result.

        Returns:
            In training a dict of losses, else a list of `{"instances": Instances}` with boxes
            clipped to the image, and no masks.

        Raises:
            ZooError: an image without ground truth, or no image, in training; NaN in inference.
        """
        if is_without_images(batched_inputs, self.training):
            return []
        images = move_images(batched_inputs, self.pixel_mean)
        if self.training:
            check_ground_truth(batched_inputs)
            return super().forward(leave_out_crowds(images))
        backbone: Any = self.backbone
        generator: Any = self.proposal_generator
        with tell_non_finite(batched_inputs, [backbone, *generator.children()]):
            results = super().forward(images)
        return [{"instances": result["proposals"]} for result in results]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        cfg = cfg.clone()
        cfg.defrost()
        translate_fcos_keys(cfg)  # keys that were assigned after the last merge
        arguments: dict[str, Any] = super().from_config(cfg)
        return {**arguments, "allow_partial": cfg.MODEL.WEIGHTS_ALLOW_PARTIAL}


@META_ARCH_REGISTRY.register()
class FCOS(OneStageDetector):
    """FCOS alone; `MODEL.PROPOSAL_GENERATOR.NAME` is not read."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = "FCOS"
        return super().from_config(cfg)
