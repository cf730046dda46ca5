"""Objects of a batch: checked ground truth of each image, and all objects joined.

Legend: N images, M instances of all images, H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

from instancezoo.errors import ZooError


@dataclass(frozen=True)
class Objects:
    """Joined ground truth of a batch. Masks are not copied: padding them is slow.

    Attributes:
        boxes: (M, 4) XYXY in pixels of the network input.
        classes: (M,) long.
        image: (M,) long, ascending, in [0, N).
        masks: N tensors (instances of the image, H, W) bool, without padding; empty list if the
            ground truth has no `BitMasks`.
        num_images: N.
    """

    boxes: Tensor
    classes: Tensor
    image: Tensor
    masks: list[Tensor]
    num_images: int


def join_objects(ground_truth: Sequence[Instances]) -> Objects:
    """Join the objects of a batch.

    Args:
        ground_truth: N Instances with `gt_boxes`, `gt_classes` and, if any, `gt_masks`.
    """
    boxes = torch.cat([x.gt_boxes.tensor for x in ground_truth])
    masks = [x.gt_masks for x in ground_truth if x.has("gt_masks")]
    bitmasks = [x.tensor.bool() for x in masks if isinstance(x, BitMasks)]
    return Objects(
        boxes=boxes,
        classes=torch.cat([x.gt_classes for x in ground_truth]),
        image=index_images([len(x) for x in ground_truth], boxes.device),
        masks=bitmasks if len(bitmasks) == len(ground_truth) else [],
        num_images=len(ground_truth),
    )


def index_images(counts: Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Image of each row where the rows of N images follow each other: (sum of `counts`,) long."""
    return torch.repeat_interleave(torch.tensor(counts, dtype=torch.long, device=device))


def check_ground_truth(batched_inputs: list[dict[str, Any]]) -> None:
    """Raise `ZooError` for an image of a training batch without `instances`."""
    for image in batched_inputs:
        if "instances" not in image:
            raise ZooError(
                f"image {image.get('file_name', '?')} has no 'instances' to train on; "
                "use a mapper built with is_train=True"
            )


def leave_out_crowds(batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the dicts of a training batch whose `instances` have no crowds.

    Every model that does not learn from crowds trains on these: INPUT.CROWDS adds them, marked by
    the field `gt_is_crowd`.
    """
    return [
        {**image, "instances": select_objects(image["instances"])}
        if "instances" in image
        else image
        for image in batched_inputs
    ]


def select_objects(instances: Instances) -> Instances:
    """Ground truth of an image without its crowds, and without the field that marks them."""
    if not instances.has("gt_is_crowd"):
        return instances
    objects = instances[~instances.gt_is_crowd]
    objects.remove("gt_is_crowd")
    return objects


def collect_ground_truth(
    batched_inputs: list[dict[str, Any]], device: torch.device, *, keep_crowds: bool = False
) -> list[Instances]:
    """Ground truth of a batch on a device, with masks as bit masks.

    Args:
        batched_inputs: N dicts in Detectron2's format.
        device: of the result.
        keep_crowds: if False, crowds are left out.

    Returns:
        N Instances with `gt_boxes`, `gt_classes` and `gt_masks` (BitMasks); with `keep_crowds` also
        `gt_is_crowd` (M,) bool.

    Raises:
        ZooError: an image has no `instances`, or objects without masks.
    """
    check_ground_truth(batched_inputs)
    if not keep_crowds:
        batched_inputs = leave_out_crowds(batched_inputs)
    ground_truth = []
    for image in batched_inputs:
        instances = image["instances"].to(device)
        # Detectron2's mapper leaves the field out where there is nothing to annotate.
        if not instances.has("gt_masks"):
            if len(instances):
                raise ZooError(
                    f"image {image.get('file_name', '?')} has {len(instances)} objects without "
                    "masks; the annotations need 'segmentation', and the config MODEL.MASK_ON"
                )
            instances.gt_masks = BitMasks(torch.zeros(0, *instances.image_size)).to(device)
        elif isinstance(instances.gt_masks, PolygonMasks):
            masks = BitMasks.from_polygon_masks(instances.gt_masks, *instances.image_size)
            instances.gt_masks = masks.to(device)
        if keep_crowds and not instances.has("gt_is_crowd"):
            instances.gt_is_crowd = torch.zeros_like(instances.gt_classes, dtype=torch.bool)
        ground_truth.append(instances)
    return ground_truth
