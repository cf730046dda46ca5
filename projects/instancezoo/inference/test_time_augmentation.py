"""Test-time augmentation of every method: mirrored and resized copies of an image, merged.

Legend: M detections of all copies, G merged detections, A copies, C channels, h w mask grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from pycocotools.mask import decode, iou
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import box_iou

from instancezoo.data.transforms import ResizeShortestEdge, build_resize, to_tensor
from instancezoo.layers.budget import DEFAULT_BUDGET
from instancezoo.layers.copy_groups import CopyGroups, group_detections
from instancezoo.layers.rle import encode_bitmasks
from instancezoo.layers.rle_votes import mirror_masks, vote_masks
from instancezoo.modeling.attributes import attribute_set
from instancezoo.modeling.input_size import read_pair
from instancezoo.modeling.masks import (
    BoxMasks,
    boxes_from_masks,
    mask_output_set,
    masks_for_output,
    select_rows,
)

from .confidence import find_detection_limit, find_lowest_score

# Weights of a vote are whole numbers, so that a tie is one in any order of the copies.
_VOTES_PER_SCORE = 2**20


@dataclass(frozen=True)
class ImageCopy:
    """How a copy is made from an image.

    Attributes:
        resize: deterministic, of images (H, W, C).
        is_mirrored: flip it from left to right.
        input_size: height and width that the model stretches it to; None for those of the model.
    """

    resize: T.Augmentation
    is_mirrored: bool
    input_size: tuple[int, int] | None = None


def list_copies(cfg: Any) -> list[ImageCopy]:
    """List the copies that TEST.AUG asks for: each of MIN_SIZES, with FLIP also mirrored.

    With INPUT.FIXED_SIZE they are other fixed sizes of the same proportion, and MIN_SIZES are their
    shorter sides.
    """
    aug, fixed = cfg.TEST.AUG, read_pair(cfg, "FIXED_SIZE")
    copies = []
    for min_size in aug.MIN_SIZES:
        own, size = cfg.clone(), None
        own.defrost()
        own.INPUT.MIN_SIZE_TEST, own.INPUT.MAX_SIZE_TEST = min_size, aug.MAX_SIZE
        if fixed is not None:
            size = ResizeShortestEdge.get_output_shape(*fixed, min_size, aug.MAX_SIZE)
            own.INPUT.FIXED_SIZE = size
        resize = build_resize(own, is_train=False)
        copies.append(ImageCopy(resize, False, size))
        if aug.FLIP:
            copies.append(ImageCopy(resize, True, size))
    return copies


def keep_original_sizes(cfg: Any) -> Any:
    """Copy a config so that its mapper leaves images as they are, for `ModelWithTTA`."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FIXED_SIZE = 0, ()
    return cfg


class ModelWithTTA(nn.Module):
    """A model that looks at several copies of each image, with the interface of the model.

    It takes the place of Detectron2's `GeneralizedRCNNWithTTA` and works with every method: each
    copy goes through the model's whole inference, and detections of one class that overlap are
    merged. Their score is half the best one and half the mean over the copies, so that an object
    ranks higher if many copies show it. Masks of two-stage models are predicted for the merged
    boxes in each copy, and their scores averaged; other masks are merged by a vote of their pixels,
    in run-length form.

    The copies are made from `image`, best of the original size (see `keep_original_sizes`). A
    single copy of the size that the model is tested at gives the model's own result.

    Args:
        model: of any method; it must be in inference mode when called.
        copies: see `list_copies`.
        mask_output: form of `pred_masks`, "bitmask" or "rle".
        max_per_image: largest number of merged detections.
        lowest_score: merged detections with a lower score are dropped.
        min_iou: overlap of two masks (or boxes, where there are no masks) of one object.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        copies: Sequence[ImageCopy],
        mask_output: str = "bitmask",
        max_per_image: int = 100,
        lowest_score: float = 0.0,
        min_iou: float = 0.5,
    ) -> None:
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.copies = list(copies)
        self.mask_output = mask_output
        self.max_per_image = max_per_image
        self.lowest_score = lowest_score
        self.min_iou = min_iou
        self.train(model.training)

    @classmethod
    def from_config(cls, cfg: Any, model: nn.Module) -> dict[str, Any]:
        return {
            "model": model,
            "copies": list_copies(cfg),
            "mask_output": cfg.MODEL.MASK_OUTPUT,
            "max_per_image": find_detection_limit(cfg),
            "lowest_score": find_lowest_score(cfg),
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Infer on a batch in Detectron2's format.

        Args:
            batched_inputs: dicts with `image` (C, H, W), optionally `height` and `width`, the size
                of the result.

        Returns:
            A list of `{"instances": Instances}` with `pred_boxes`, `scores`, `pred_classes`,
            `pred_masks` if the model makes masks, and other fields of one number per detection,
            merged as the scores are.
        """
        return [{"instances": self._infer(record)} for record in batched_inputs]

    def _infer(self, record: dict[str, Any]) -> Instances:
        height, width = record["image"].shape[1:]
        record = {"height": height, "width": width, **record}
        heads = getattr(self.model, "roi_heads", None)
        # Detectron2's two-stage models predict masks for any boxes.
        has_box_masks = isinstance(self.model, GeneralizedRCNN) and getattr(heads, "mask_on", False)
        with (
            mask_output_set(self.model, "rle"),
            attribute_set([heads] if has_box_masks else [], "mask_on", False),
        ):
            found = [_restore(self._run(record, copy), copy.is_mirrored) for copy in self.copies]
        device = found[0].scores.device
        merged = self._merge(found)
        if has_box_masks:
            masks: Any = self._predict_masks(record, merged.to(device))
        elif merged.has("pred_masks"):
            masks = merged.pred_masks
            merged.remove("pred_masks")
            if self.mask_output == "bitmask":
                masks = decode_masks(masks, *merged.image_size)
        else:
            return merged.to(device)
        merged.pred_masks = masks
        return merged.to(device)

    def _run(self, record: dict[str, Any], copy: ImageCopy) -> Instances:
        """The model's result on one copy."""
        is_stretched = getattr(self.model, "input_size", None) is not None
        parts = [self.model] if is_stretched else []
        with attribute_set(parts, "input_size", copy.input_size):
            found: Instances = self.model([make_copy(record, copy)])[0]["instances"]
        return found

    def _merge(self, found: Sequence[Instances]) -> Instances:
        """One image's merged detections, on the CPU, masks in run-length form."""
        copies = torch.arange(len(found)).repeat_interleave(torch.tensor([len(x) for x in found]))
        joined = _join(found)
        order = joined["scores"].argsort(descending=True, stable=True)
        fields = {name: select_rows(values, order) for name, values in joined.items()}
        scores, boxes, masks = fields["scores"], fields["pred_boxes"], fields.get("pred_masks")
        groups = group_detections(
            partial(_compare_boxes if masks is None else _compare_masks, masks or boxes),
            fields["pred_classes"],
            copies[order],
            num_copies=len(found),
            min_iou=self.min_iou,
        )
        merged: dict[str, Any] = {
            name: groups.merge_scores(values)
            for name, values in fields.items()
            if isinstance(values, Tensor) and values.ndim == 1 and values.is_floating_point()
        }
        merged["pred_classes"] = fields["pred_classes"][groups.leaders]
        merged["pred_boxes"] = Boxes(groups.average_boxes(boxes, scores))
        if masks is not None:
            merged["pred_masks"] = _vote(masks, scores, groups)
            own = boxes_from_masks(select_rows(masks, groups.leaders))
            # Boxes around the masks stay around them; predicted ones are averaged.
            is_tight = (own == boxes[groups.leaders]).all(dim=1, keepdim=True)
            tight = boxes_from_masks(merged["pred_masks"])
            merged["pred_boxes"] = Boxes(torch.where(is_tight, tight, merged["pred_boxes"].tensor))
        kept = merged["scores"].argsort(descending=True, stable=True)
        kept = kept[merged["scores"][kept] >= self.lowest_score][: self.max_per_image]
        fields = {name: select_rows(values, kept) for name, values in merged.items()}
        return Instances(found[0].image_size, **fields)

    def _predict_masks(self, record: dict[str, Any], merged: Instances) -> Any:
        """`pred_masks` of merged detections: the mean over the copies of the scores in each box."""
        model: Any = self.model
        # Heads with a convention of their own say how boxes are scaled and masks placed in them.
        resize = getattr(model.roi_heads, "resize_boxes", _resize_boxes)
        place = getattr(model.roi_heads, "place_masks", BoxMasks)
        total: Any = 0
        for copy in self.copies:
            image = make_copy(record, copy)
            rows, columns = image["image"].shape[1:]
            boxes = merged.pred_boxes.tensor
            if copy.is_mirrored:
                boxes = _mirror_boxes(boxes, record["width"])
            boxes = Boxes(resize(boxes, merged.image_size, (rows, columns)))
            given = Instances((rows, columns), **{**merged.get_fields(), "pred_boxes": boxes})
            (result,) = model.inference([image], [given], do_postprocess=False)
            scores = result.pred_masks[:, 0]  # (G, h, w)
            total = total + (scores.flip(2) if copy.is_mirrored else scores)
        height, width = merged.image_size
        masks = place(total / len(self.copies), merged.pred_boxes.tensor)
        return masks_for_output(masks, height, width, self.mask_output)


def make_copy(record: dict[str, Any], copy: ImageCopy) -> dict[str, Any]:
    """The model's input for one copy; its result has the size of the record's.

    Args:
        record: with `image` (C, H, W), and `height` and `width` of the result; a semantic map
            `sem_seg` (H, W) that is an input of the model follows the image.
        copy: how to make it.
    """
    image = record["image"].permute(1, 2, 0).cpu().numpy()
    transform = copy.resize.get_transform(image)
    image = transform.apply_image(image)
    made = {**record, "image": to_tensor(image[:, ::-1] if copy.is_mirrored else image)}
    if "sem_seg" in record:
        labels = record["sem_seg"].cpu().numpy()
        # As the mapper: no wider integers are resized.
        labels = labels.astype(np.uint8 if labels.min() >= 0 and labels.max() < 256 else np.float32)
        labels = transform.apply_segmentation(labels).astype(np.int64)
        made["sem_seg"] = torch.from_numpy(labels[:, ::-1].copy() if copy.is_mirrored else labels)
    return made


def decode_masks(masks: Sequence[dict[str, Any]], height: int, width: int) -> Tensor:
    """Full-size masks (G, height, width) bool of COCO RLE dicts."""
    decoded = torch.zeros((len(masks), height, width), dtype=torch.bool)
    size = max(1, DEFAULT_BUDGET // (height * width))
    for start in range(0, len(masks), size):
        pixels = decode(masks[start : start + size])  # (height, width, size)
        decoded[start : start + size] = torch.from_numpy(pixels).permute(2, 0, 1)
    return decoded


def _restore(found: Instances, is_mirrored: bool) -> Instances:
    """Bring the detections of a copy into the frame of the image, masks in run-length form."""
    fields = dict(found.get_fields())
    if "pred_masks" in fields and isinstance(fields["pred_masks"], Tensor):  # a foreign model's
        fields["pred_masks"] = encode_bitmasks(fields["pred_masks"])
    if is_mirrored:
        boxes = _mirror_boxes(fields["pred_boxes"].tensor, found.image_size[1])
        fields["pred_boxes"] = Boxes(boxes)
        if "pred_masks" in fields:
            fields["pred_masks"] = mirror_masks(fields["pred_masks"])
    return Instances(found.image_size, **fields)


def _mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """Flip boxes (M, 4) XYXY from left to right."""
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=1)


def _resize_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Scale boxes (M, 4) XYXY with an image from one height and width to others."""
    resized = Boxes(boxes.clone())
    resized.scale(new_size[1] / size[1], new_size[0] / size[0])
    return resized.tensor


def _join(found: Sequence[Instances]) -> dict[str, Any]:
    """Fields of all copies on the CPU, boxes as tensors."""
    joined: dict[str, Any] = {}
    for name, first in found[0].get_fields().items():
        parts = [part.get(name) for part in found]
        if isinstance(first, Boxes):
            joined[name] = torch.cat([boxes.tensor for boxes in parts]).cpu()
        elif isinstance(first, list):
            joined[name] = [item for part in parts for item in part]
        elif isinstance(first, Tensor):
            joined[name] = torch.cat(parts).cpu()
    return joined


def _compare_boxes(boxes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return box_iou(boxes[rows], boxes[columns])


def _compare_masks(masks: list[dict[str, Any]], rows: Tensor, columns: Tensor) -> Tensor:
    others = select_rows(masks, columns)
    return torch.from_numpy(iou(select_rows(masks, rows), others, [0] * len(others)))


def _vote(masks: list[dict[str, Any]], scores: Tensor, groups: CopyGroups) -> list[dict[str, Any]]:
    """Merge the masks of each group; a copy weighs as much as its score."""
    weights = (scores[groups.members].float() * _VOTES_PER_SCORE).round().long().clamp(min=1)
    members = select_rows(masks, groups.members)
    return vote_masks(members, weights, groups.group, len(groups.leaders))
