"""Targets of the semantic branch: maps of the data set, or maps painted from its objects.

Legend: N images, M objects of an image, H W image size, h w size of the semantic map.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from instancezoo.errors import ZooError
from instancezoo.modeling.objects import collect_ground_truth

_logger = logging.getLogger(__name__)


class SemanticTargets:
    """Makes the label maps of a batch.

    Args:
        source: "stuff", "things" or "auto", see MODEL.HTC.SEMANTIC_TARGETS.
        num_classes: labels are below it.
        num_things: label of the background in painted maps.
        ignore_value: label of pixels that are not trained on.
        stride: of the semantic map, in pixels.
    """

    def __init__(
        self, *, source: str, num_classes: int, num_things: int, ignore_value: int, stride: int
    ) -> None:
        self.is_auto = source == "auto"
        self.source = "" if self.is_auto else source  # "": the first batch decides
        self.num_classes = num_classes
        self.num_things = num_things
        self.ignore_value = ignore_value
        self.stride = stride

    def make(self, records: Sequence[dict[str, Any]], padded_size: Sequence[int]) -> Tensor:
        """Label the cells of the semantic map by the pixels at their upper left corners.

        Args:
            records: N dicts in Detectron2's format.
            padded_size: height and width of the batch in pixels.

        Returns:
            (N, h, w) long, on the device of the records; padding has `ignore_value`.

        Raises:
            ZooError: an image lacks its map, or has labels that are no classes.
        """
        if not self.source:
            self._choose_source(records)
        make_one = self._read if self.source == "stuff" else self._paint
        height, width = (-(-int(side) // self.stride) for side in padded_size)
        maps = []
        for record in records:
            labels = make_one(record)
            padded = labels.new_full((height, width), self.ignore_value)
            padded[: labels.shape[0], : labels.shape[1]] = labels
            maps.append(padded)
        return torch.stack(maps)

    def _choose_source(self, records: Sequence[dict[str, Any]]) -> None:
        """Take what the first batch has; classes of the two kinds of maps differ."""
        source = "stuff" if "sem_seg" in records[0] else "things"
        if source == "things" and self.num_classes <= self.num_things:
            raise ZooError(
                f"MODEL.HTC.SEMANTIC_NUM_CLASSES is {self.num_classes}, but maps painted from "
                f"{self.num_things} thing classes need {self.num_things + 1}: set it to 0, or "
                "MODEL.HTC.SEMANTIC_ON to False"
            )
        self.source = source
        text = {
            "stuff": "the data set's own maps",
            "things": f"maps painted from its objects (background: class {self.num_things})",
        }
        _logger.info("The semantic branch learns %s", text[source])

    def _read(self, record: dict[str, Any]) -> Tensor:
        name = _name(record)
        if "sem_seg" not in record:
            raise ZooError(
                f"{name} has no semantic map, which the semantic branch of HTC learns from: name "
                "the folder of the maps in INPUT.SEMANTIC_MAPS (or each file in sem_seg_file_name "
                "of the data set's records), have maps painted from the objects, which is another "
                "training than the published one, with MODEL.HTC.SEMANTIC_TARGETS things, or "
                "switch the branch off with MODEL.HTC.SEMANTIC_ON False"
            )
        labels: Tensor = record["sem_seg"]
        is_class = (labels >= 0) & (labels < self.num_classes)
        bad = labels[~is_class & (labels != self.ignore_value)]
        if len(bad):
            raise ZooError(
                f"the semantic map of {name} has label {int(bad[0])}; with "
                f"MODEL.HTC.SEMANTIC_NUM_CLASSES {self.num_classes} labels are 0 to "
                f"{self.num_classes - 1}, or {self.ignore_value} for pixels to ignore"
            )
        return labels[:: self.stride, :: self.stride].long()

    def _paint(self, record: dict[str, Any]) -> Tensor:
        if "sem_seg" in record and self.is_auto:
            raise ZooError(
                f"{_name(record)} has a semantic map, but images before it have none: add theirs, "
                "or paint all maps from the objects with MODEL.HTC.SEMANTIC_TARGETS things"
            )
        (objects,) = collect_ground_truth([record], record["instances"].gt_classes.device)
        masks = objects.gt_masks.tensor[:, :: self.stride, :: self.stride]
        return paint_labels(masks, objects.gt_classes, self.num_things)


def paint_labels(masks: Tensor, classes: Tensor, background: int) -> Tensor:
    """Paint objects over each other, smaller ones last.

    Args:
        masks: (M, h, w) bool.
        classes: (M,) long.
        background: label of the cells that no object covers.

    Returns:
        (h, w) long.
    """
    order = masks.flatten(1).sum(dim=1).argsort(descending=True, stable=True)
    ranks = torch.arange(1, len(order) + 1, device=masks.device)[:, None, None]
    nobody = ranks.new_zeros(1, *masks.shape[1:])
    last = torch.cat([nobody, masks[order] * ranks]).amax(dim=0)  # (h, w), 0 for the background
    return torch.cat([classes.new_full((1,), background), classes[order]])[last]


def _name(record: dict[str, Any]) -> str:
    return f"image '{record.get('file_name', '?')}'"
