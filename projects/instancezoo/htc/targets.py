"""Ground truth of the boxes of one stage: matching, added objects, sampling.

Legend: R boxes of an image, M objects of an image, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How boxes are chosen for training.

    Attributes:
        num_classes: K, also the label of the background.
        batch_size: boxes of an image.
        positive_fraction: largest share of positive ones.
    """

    num_classes: int
    batch_size: int
    positive_fraction: float


def label_boxes(
    boxes: Tensor, objects: Instances, matcher: Matcher, num_classes: int, *, add_objects: bool
) -> Instances:
    """Give each box of an image its object, or the background.

    Args:
        boxes: (R, 4) XYXY.
        objects: M Instances with `gt_boxes` and `gt_classes`.
        matcher: (M, R) IoU -> matched object and label of each box.
        num_classes: K.
        add_objects: put the objects' own boxes in front, each as its own match.

    Returns:
        Instances with `proposal_boxes`, `gt_boxes`, `gt_classes` in [0, K], `matched` (index of the
        object) and `is_added`.
    """
    object_boxes: Tensor = objects.gt_boxes.tensor
    matched, labels = matcher(pairwise_iou(objects.gt_boxes, Boxes(boxes)))
    is_added = torch.zeros_like(matched, dtype=torch.bool)
    if add_objects:
        # A box without area cannot be the source of a regression.
        own = objects.gt_boxes.nonempty().nonzero().squeeze(1)
        boxes = torch.cat([object_boxes[own], boxes])
        matched = torch.cat([own, matched])
        labels = torch.cat([labels.new_ones(len(own)), labels])
        is_added = torch.cat([is_added.new_ones(len(own)), is_added])
    result = Instances(objects.image_size)
    result.proposal_boxes = Boxes(boxes)
    result.matched, result.is_added = matched, is_added
    if len(objects):
        result.gt_boxes = Boxes(object_boxes[matched])
        classes = objects.gt_classes[matched]
        result.gt_classes = torch.where(labels == 1, classes, torch.full_like(classes, num_classes))
    else:
        result.gt_boxes = Boxes(torch.zeros_like(boxes))
        result.gt_classes = torch.full_like(matched, num_classes)
    return result


def sample_boxes(labelled: Instances, sampling: Sampling) -> Instances:
    """Choose boxes of an image at random: positive ones, then negative ones."""
    chosen = subsample_labels(
        labelled.gt_classes, sampling.batch_size, sampling.positive_fraction, sampling.num_classes
    )
    return labelled[torch.cat(chosen)]


def select_positives(labelled: Instances, objects: Instances, num_classes: int) -> Instances:
    """Keep the boxes of objects, with the objects' masks."""
    positives = labelled[labelled.gt_classes < num_classes]
    if len(positives):
        positives.gt_masks = objects.gt_masks[positives.matched]
    return positives


def log_counts(samples: list[Instances], num_classes: int) -> None:
    """Log the mean numbers of positive and other boxes per image, as `CascadeROIHeads` does."""
    classes = torch.cat([regions.gt_classes for regions in samples])
    positive = int((classes < num_classes).sum())
    storage = get_event_storage()
    storage.put_scalar("roi_head/num_fg_samples", positive / len(samples))
    storage.put_scalar("roi_head/num_bg_samples", (len(classes) - positive) / len(samples))
