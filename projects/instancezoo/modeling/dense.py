"""Skeleton of one-stage models whose masks cover the whole image.

Detectron2's `DenseDetector` ends by pasting box-sized masks; here masks end in `ImageMasks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import move_device_like
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from torch import Tensor, nn

from instancezoo.modeling.masks import boxes_from_masks, masks_for_output


class DenseSegmenter(nn.Module):
    """Normalise, pad, backbone, head, then `losses` or `inference`; a method fills in those two.

    Args:
        backbone: Detectron2 backbone.
        head: takes the list of feature maps, returns whatever the method's two functions take.
        in_features: names of the backbone's outputs that the head gets, finest first.
        pixel_mean, pixel_std: per channel, in the channel order of the input.
        mask_output: "bitmask" (bool tensor) or "rle" (COCO RLE dicts).
        keep_empty_masks: whether detections whose mask has no pixel stay in the result.
    """

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
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.in_features = list(in_features)
        self.mask_output = mask_output
        self.keep_empty_masks = keep_empty_masks
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device  # type: ignore[return-value]

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Train or infer on a batch in Detectron2's format.

        Args:
            batched_inputs: dicts with `image` (C, H, W), in training `instances` with `gt_boxes`,
                `gt_classes`, `gt_masks`, in inference optionally `height` and `width`, the size
                of the result.

        Returns:
            In training a dict of losses, else a list of `{"instances": Instances}`.
        """
        images = self.preprocess(batched_inputs)
        features = self.backbone(images.tensor)
        outputs = self.head([features[name] for name in self.in_features])
        if self.training:
            return self.losses(outputs, images, self._collect_ground_truth(batched_inputs))
        results = []
        for detections, image in zip(self.inference(outputs, images), batched_inputs, strict=True):
            height = image.get("height", detections.image_size[0])
            width = image.get("width", detections.image_size[1])
            results.append({"instances": self.finish(detections, height, width)})
        return results

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them with zeros to one size."""
        images = [move_device_like(x["image"], self.pixel_mean) for x in batched_inputs]
        return ImageList.from_tensors(
            [(image - self.pixel_mean) / self.pixel_std for image in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def losses(
        self, outputs: Any, images: ImageList, ground_truth: list[Instances]
    ) -> dict[str, Tensor]:
        """Named losses of a batch; finite and connected to every parameter, also without objects.

        Args:
            outputs: what the head returned.
            images: the padded batch.
            ground_truth: N Instances with `gt_boxes`, `gt_classes`, `gt_masks` (BitMasks).
        """
        raise NotImplementedError

    def inference(self, outputs: Any, images: ImageList) -> list[Instances]:
        """Detections of a batch.

        Args:
            outputs: what the head returned.
            images: the padded batch.

        Returns:
            N Instances with `scores`, `pred_classes`, `pred_masks` (a compact form) and, if the
            method predicts them, `pred_boxes` in the frame of the network input.
        """
        raise NotImplementedError

    def finish(self, detections: Instances, height: int, width: int) -> Instances:
        """Bring one image's detections to their final form and size.

        Args:
            detections: as `inference` returns them.
            height, width: size of the original image in pixels.

        Returns:
            Instances with `pred_boxes`, `scores`, `pred_classes`, `pred_masks`.
        """
        masks = masks_for_output(detections.pred_masks, height, width, self.mask_output)
        tight = boxes_from_masks(masks).to(self.device)
        boxes = Boxes(tight)
        if detections.has("pred_boxes"):
            boxes = detections.pred_boxes.clone()
            boxes.scale(width / detections.image_size[1], height / detections.image_size[0])
            boxes.clip((height, width))
        scores, classes = detections.scores, detections.pred_classes
        if not self.keep_empty_masks:
            kept = (tight[:, 2] > tight[:, 0]).nonzero().squeeze(1)
            boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
            masks = [masks[i] for i in kept.tolist()] if isinstance(masks, list) else masks[kept]
        return Instances(
            (height, width),
            pred_boxes=boxes,
            scores=scores,
            pred_classes=classes,
            pred_masks=masks,
        )

    def _collect_ground_truth(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        ground_truth = []
        for image in batched_inputs:
            if "instances" not in image:
                raise ValueError(
                    f"image {image.get('file_name', '?')} has no 'instances' to train on; "
                    "use a mapper that is built with is_train=True"
                )
            instances = image["instances"].to(self.device)
            masks = instances.gt_masks if instances.has("gt_masks") else None
            if isinstance(masks, PolygonMasks):
                masks = BitMasks.from_polygon_masks(masks, *instances.image_size)
                instances.gt_masks = masks.to(self.device)
            elif masks is None:
                # Detectron2's mapper leaves the field out where there is nothing to annotate.
                if len(instances):
                    raise ValueError(
                        f"image {image.get('file_name', '?')} has {len(instances)} objects without "
                        "masks; the annotations need 'segmentation', and the config MODEL.MASK_ON"
                    )
                instances.gt_masks = BitMasks(torch.zeros(0, *instances.image_size)).to(self.device)
            ground_truth.append(instances)
        return ground_truth
