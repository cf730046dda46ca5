"""One-stage methods: the contract of four verbs, and the skeleton of those with masks.

    outputs = head(features)                     training: losses(outputs, assign(outputs, ...))
                                                 inference: postprocess(decode(outputs, ...), ...)

Detectron2's `DenseDetector` ends by pasting box-sized masks; here masks end in a compact form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from instancezoo.modeling.guards import is_without_images, move_image, tell_non_finite
from instancezoo.modeling.input_size import read_pair, stretch_image
from instancezoo.modeling.masks import boxes_from_masks, masks_for_output, select_rows
from instancezoo.modeling.objects import collect_ground_truth
from instancezoo.modeling.whole_weights import WholeWeights

Outputs = TypeVar("Outputs")  # what a method's head returns
Targets = TypeVar("Targets")  # what its outputs are compared with


class DenseMethod(nn.Module, Generic[Outputs, Targets]):
    """The four verbs that every one-stage method defines, with the same signatures."""

    def assign(self, outputs: Outputs, images: ImageList, ground_truth: list[Instances]) -> Targets:
        """Training targets of a batch.

        Args:
            outputs: what the head returned; only the sizes of its maps are read.
            images: the padded batch.
            ground_truth: N Instances with `gt_boxes`, `gt_classes` and, for methods with masks,
                `gt_masks` (BitMasks).
        """
        raise NotImplementedError

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Named losses; finite and connected to every parameter, also without objects."""
        raise NotImplementedError

    def decode(self, outputs: Outputs, images: ImageList) -> list[Instances]:
        """Candidates in the frame of the network input.

        Returns:
            N Instances with `scores` and `pred_classes`, `pred_masks` (a compact form) if the
            method has masks, and `pred_boxes` if it predicts boxes; without duplicates, unless NMS
            needs the original size and is part of `postprocess`.
        """
        raise NotImplementedError

    def postprocess(self, candidates: Instances, height: int, width: int) -> Instances:
        """Bring one image's candidates to their final form and size.

        Args:
            candidates: as `decode` returns them.
            height, width: size of the original image in pixels.

        Returns:
            Instances with `pred_boxes`, `scores`, `pred_classes` and, if the method has masks,
            `pred_masks`.
        """
        raise NotImplementedError


class DenseSegmenter(WholeWeights, DenseMethod[Outputs, Targets]):
    """Stretch, normalise and pad images, run backbone and head; a method adds the four verbs.

    Crowds are left out of the ground truth. A method that uses them sets `keep_crowds` True; they
    come after the objects then, and the field `gt_is_crowd` marks them.

    Args:
        backbone: Detectron2 backbone.
        head: takes the list of feature maps, returns the method's `Outputs`.
        in_features: names of the backbone's outputs that the head gets, finest first.
        pixel_mean, pixel_std: per channel, in the channel order of the input.
        mask_output: "bitmask" (bool tensor) or "rle" (COCO RLE dicts).
        keep_empty_masks: if True, detections whose mask has no pixel stay in the result.
        input_size: height and width in pixels that every image is stretched to in inference; None
            leaves images as they come (the mapper has resized those of training).
        input_antialias: of this resize, as INPUT.FIXED_SIZE_ANTIALIAS.
        size_divisibility: padded sides are multiples of this; None takes what the backbone needs.
        allow_partial: see `WholeWeights`.
    """

    keep_crowds = False
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        mask_output: str = "bitmask",
        keep_empty_masks: bool = False,
        input_size: tuple[int, int] | None = None,
        input_antialias: bool = True,
        size_divisibility: int | None = None,
        allow_partial: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.in_features = list(in_features)
        self.mask_output = mask_output
        self.keep_empty_masks = keep_empty_masks
        self.allow_partial = allow_partial
        self.input_size = input_size
        self.input_antialias = input_antialias
        self.size_divisibility = size_divisibility or backbone.size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments that all methods share; a method adds its head, features and settings."""
        return {
            "backbone": build_backbone(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "mask_output": cfg.MODEL.MASK_OUTPUT,
            "input_size": read_pair(cfg, "FIXED_SIZE"),
            "input_antialias": cfg.INPUT.FIXED_SIZE_ANTIALIAS,
            "allow_partial": cfg.MODEL.WEIGHTS_ALLOW_PARTIAL,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Train or infer on a batch in Detectron2's format.

        Args:
            batched_inputs: dicts with `image` (C, H, W), in training `instances` with `gt_boxes`,
                `gt_classes`, `gt_masks`, in inference optionally `height` and `width`, the size
                of the result.

        Returns:
            In training a dict of losses, else a list of `{"instances": Instances}`.

        Raises:
            ZooError: an image without ground truth, or no image, in training; NaN in inference.
        """
        if is_without_images(batched_inputs, self.training):
            return []
        if self.training:
            images, outputs = self._run(batched_inputs)
            ground_truth = collect_ground_truth(
                batched_inputs, self.device, keep_crowds=self.keep_crowds
            )
            return self.losses(outputs, self.assign(outputs, images, ground_truth))
        parts = [self.backbone, self.head, *self.head.children()]
        with tell_non_finite(batched_inputs, parts) as check:
            if self.input_size is not None:
                batched_inputs = [
                    stretch_image(image, self.input_size, self.input_antialias)
                    for image in batched_inputs
                ]
            images, outputs = self._run(batched_inputs)
            decoded = self.decode(outputs, images)
            check(decoded)
        results = []
        for candidates, image in zip(decoded, batched_inputs, strict=True):
            height = image.get("height", candidates.image_size[0])
            width = image.get("width", candidates.image_size[1])
            results.append({"instances": self.postprocess(candidates, height, width)})
        return results

    def _run(self, batched_inputs: list[dict[str, Any]]) -> tuple[ImageList, Outputs]:
        """The padded batch and what the head makes of it."""
        images = self.preprocess(batched_inputs)
        features = self.backbone(images.tensor)
        outputs: Outputs = self.head([features[name] for name in self.in_features])
        return images, outputs

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them with zeros to one size."""
        images = [move_image(x["image"], self.pixel_mean) for x in batched_inputs]
        normalised = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(
            normalised,
            self.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def postprocess(self, candidates: Instances, height: int, width: int) -> Instances:
        """See `DenseMethod.postprocess`; boxes are predicted ones, scaled and clipped, or tight."""
        masks = masks_for_output(candidates.pred_masks, height, width, self.mask_output)
        tight = boxes_from_masks(masks).to(self.device)
        boxes = Boxes(tight)
        if candidates.has("pred_boxes"):
            boxes = candidates.pred_boxes.clone()
            boxes.scale(width / candidates.image_size[1], height / candidates.image_size[0])
            boxes.clip((height, width))
        fields: dict[str, Any] = {
            "pred_boxes": boxes,
            "scores": candidates.scores,
            "pred_classes": candidates.pred_classes,
            "pred_masks": masks,
        }
        if not self.keep_empty_masks:
            kept = (tight[:, 2] > tight[:, 0]).nonzero().squeeze(1)
            fields = {name: select_rows(field, kept) for name, field in fields.items()}
        return Instances((height, width), **fields)
