"""Bottom-up methods: pixels are labelled first, then grouped to instances.

    maps = head(features)                        training: losses(maps, assign(maps, ...))
                                                 inference: decode, which is for each image
        segments = group(maps, image)            which cells belong together
        classes, scores = describe(maps, ...)    from the maps under each segment
        masks = make_masks(segments, ...)        in a compact form

Legend: N images, K classes, M segments, P pairs of segment and cell, h w size of the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList, Instances
from torch import Tensor

from instancezoo.layers.owners import average_by_owner
from instancezoo.modeling.dense import DenseSegmenter, Targets
from instancezoo.modeling.masks import LabelMasks, MaskForm
from instancezoo.modeling.object_maps import ObjectMaps, paint_objects

Maps = TypeVar("Maps")  # what a method's head returns


@dataclass(frozen=True)
class GroupSettings:
    """What becomes of the segments in inference.

    Attributes:
        score_thresh: detections have a higher score.
        max_per_image: detections kept, best first.
        mask_resize: from the network input to the original size, see `LabelMasks`.
    """

    score_thresh: float = 0.05
    max_per_image: int = 100
    mask_resize: str = "bilinear"


@dataclass(frozen=True)
class Segments:
    """The segments of one image, as pairs of segment and cell; they may overlap.

    Attributes:
        owners: (P,) long, segment, from 0 on.
        cells: (P,) long, cell of the grid in row-major order.
        grid: h, w.
        confidences: (M,), how well each segment holds together, in [0, 1]; part of its score.
    """

    owners: Tensor
    cells: Tensor
    grid: tuple[int, int]
    confidences: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor, confidences: Tensor) -> Segments:
        """Disjoint segments of a map (h, w) long of 0 for none and 1 to M; (M,) confidences."""
        cells = labels.flatten().nonzero().squeeze(1)
        grid = labels.shape[0], labels.shape[1]
        return cls(labels.flatten()[cells] - 1, cells, grid, confidences)

    def __len__(self) -> int:
        return len(self.confidences)

    def draw_labels(self) -> Tensor:
        """The map of labels of disjoint segments: (h, w) long, 0 for none, 1 to M."""
        labels = self.owners.new_zeros(self.grid[0] * self.grid[1])
        labels[self.cells] = self.owners + 1
        return labels.view(self.grid)


@dataclass(frozen=True)
class ClassifiedSegments(Segments):
    """Segments whose classes are known from their grouping.

    Attributes:
        classes: (M,) long.
    """

    classes: Tensor


def read_group_arguments(
    arguments: dict[str, Any], node: CfgNode, in_features: Sequence[str]
) -> dict[str, Any]:
    """Add the arguments of `BottomUpSegmenter` whose keys every method's section has.

    Args:
        arguments: of `DenseSegmenter.from_config`.
        node: section with NUM_CLASSES, SCORE_THRESH, MAX_INSTANCES and MASK_RESIZE.
        in_features: maps that the head gets.
    """
    backbone = arguments["backbone"]
    shapes = backbone.output_shape()
    coarsest = max(shapes[name].stride or 1 for name in in_features)
    return {
        **arguments,
        # Maps are doubled up to the finest: their sizes must be whole multiples.
        "size_divisibility": max(coarsest, backbone.size_divisibility),
        "in_features": list(in_features),
        "num_classes": node.NUM_CLASSES,
        "decode_settings": GroupSettings(
            score_thresh=node.SCORE_THRESH,
            max_per_image=node.MAX_INSTANCES,
            mask_resize=node.MASK_RESIZE,
        ),
    }


class BottomUpSegmenter(DenseSegmenter[Maps, Targets], Generic[Maps, Targets]):
    """A one-stage model that groups pixels; a method adds `assign`, `losses`, `group`.

    Args:
        num_classes: K.
        stride: of the grid on which pixels are grouped, in pixels of the network input.
        decode_settings: what becomes of the segments.
        kwargs: those of `DenseSegmenter`.
    """

    keep_crowds = True  # no loss counts their cells

    def __init__(
        self, *, num_classes: int, stride: int, decode_settings: GroupSettings, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.stride = stride
        self.decode_settings = decode_settings

    def paint(self, images: ImageList, ground_truth: list[Instances]) -> ObjectMaps:
        """The objects on the grid, from which targets are made; crowds and padding are ignored."""
        padded_size = images.tensor.shape[2:]
        return paint_objects(ground_truth, padded_size, self.stride, self.num_classes)

    def group(self, maps: Maps, index: int, grid: tuple[int, int]) -> Segments:
        """Group the cells of an image.

        Args:
            maps: what the head returned for the batch.
            index: of the image in the batch.
            grid: rows and columns of the cells without those of the padding, which no segment may
                have; the grid of the result.
        """
        raise NotImplementedError

    def predict_classes(self, maps: Maps, index: int, grid: tuple[int, int]) -> Tensor:
        """Probabilities (K + 1, h, w) of the cells, the background last; as in `group`."""
        raise NotImplementedError

    def describe(self, maps: Maps, index: int, segments: Segments) -> tuple[Tensor, Tensor]:
        """Classes (M,) long and scores (M,) of segments, all of which have cells.

        The class is what most cells vote for, the score its mean probability times the segment's
        confidence. Methods that know more override it.
        """
        probs = self.predict_classes(maps, index, segments.grid)
        classes, scores = vote_classes(probs, segments)
        return classes, scores * segments.confidences

    def make_masks(self, segments: Segments, image_size: tuple[int, int]) -> MaskForm:
        """Masks of the segments; methods whose segments overlap override it."""
        padded_size = segments.grid[0] * self.stride, segments.grid[1] * self.stride
        ids = torch.arange(1, len(segments) + 1, device=segments.owners.device)
        resize = self.decode_settings.mask_resize
        return LabelMasks(ids, segments.draw_labels(), padded_size, image_size, resize=resize)

    def decode(self, outputs: Maps, images: ImageList) -> list[Instances]:
        """See `DenseMethod.decode`; best detections first."""
        settings, results = self.decode_settings, []
        for index, size in enumerate(images.image_sizes):
            image_size = int(size[0]), int(size[1])
            grid = -(-image_size[0] // self.stride), -(-image_size[1] // self.stride)
            segments = self.group(outputs, index, grid)
            classes, scores = self.describe(outputs, index, segments)
            order = scores.argsort(descending=True, stable=True)
            order = order[scores[order] > settings.score_thresh][: settings.max_per_image]
            found = Instances(image_size, scores=scores[order].float(), pred_classes=classes[order])
            found.pred_masks = self.make_masks(segments, image_size)[order]
            results.append(found)
        return results


def vote_classes(
    probs: Tensor, segments: Segments, voters: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Class that most cells of each segment vote for, and its mean probability over the segment.

    Args:
        probs: (K + 1, h, w), the background last; it has no vote.
        segments: M, all of which have cells.
        voters: (h, w) bool, cells that vote, one or more of each segment; None for all. All cells
            count in the mean.

    Returns:
        (M,) long, the lowest of equally frequent classes; (M,) scores in [0, 1].
    """
    num_classes = len(probs) - 1
    at_cells = probs.flatten(1)[:num_classes, segments.cells]  # (K, P)
    votes = segments.owners * num_classes + at_cells.argmax(dim=0)
    if voters is not None:
        votes = votes[voters.flatten()[segments.cells]]
    counts = votes.bincount(minlength=len(segments) * num_classes)
    classes = counts.view(len(segments), num_classes).argmax(dim=1)
    chosen = at_cells.gather(0, classes[segments.owners][None])[0]  # (P,)
    return classes, average_by_owner(chosen, segments.owners, len(segments))
