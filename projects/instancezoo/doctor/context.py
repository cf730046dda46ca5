"""The subject of the checks: config, data sets and the model built from them.

Legend: M objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.modeling import build_model
from torch import nn

from instancezoo.data.coco_report import AnnotationReport
from instancezoo.data.mappers import is_trained_on
from instancezoo.data.transforms import ResizeShortestEdge
from instancezoo.modeling.input_size import read_pair


@dataclass(frozen=True)
class InputSize:
    """Resize of images for the network.

    Args:
        short_edge, max_size: length of the shortest edge and maximum length of the longest, pixels;
            a shortest edge of 0 leaves images as they are.
        fixed: height and width in pixels that every image is stretched to instead; None for none.
    """

    short_edge: int
    max_size: int
    fixed: tuple[int, int] | None = None

    @property
    def keys(self) -> str:
        """Config keys of the size."""
        return "INPUT.FIXED_SIZE" if self.fixed else "INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN"

    def resize(self, sizes: np.ndarray) -> np.ndarray:
        """Resize images of heights and widths `sizes`, (N, 2) int -> (N, 2) int."""
        if self.fixed is not None:
            return np.tile(np.array(self.fixed, dtype=np.int64), (len(sizes), 1))
        if self.short_edge == 0:
            return np.array(sizes, dtype=np.int64).reshape(-1, 2)
        limits = self.short_edge, self.max_size
        shapes = [ResizeShortestEdge.get_output_shape(int(h), int(w), *limits) for h, w in sizes]
        return np.array(shapes, dtype=np.int64).reshape(-1, 2)


@dataclass
class DatasetFacts:
    """A data set without its bad annotations.

    Args:
        name: its registered name.
        is_train: if True, it is in DATASETS.TRAIN, else in DATASETS.TEST.
        image_root: folder of the images.
        clean: COCO dictionary.
        report: the entries dropped from it.
        with_masks: if True, objects without a mask are not trained on.
    """

    name: str
    is_train: bool
    image_root: Path
    clean: dict[str, Any]
    report: AnnotationReport
    with_masks: bool = False

    @cached_property
    def category_names(self) -> dict[int, str]:
        """Name of each category id, in the order of the ids."""
        return {c["id"]: c["name"] for c in sorted(self.clean["categories"], key=lambda c: c["id"])}

    @property
    def image_paths(self) -> list[Path]:
        """Files of the images, in the order of the JSON file."""
        return [self.image_root / image["file_name"] for image in self.clean["images"]]

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """Annotations that training takes: no crowds, and those with masks if it needs masks."""
        return [a for a in self.clean["annotations"] if is_trained_on(a, self.with_masks)]

    @cached_property
    def objects_per_image(self) -> np.ndarray:
        """(N,) int, in the order of the JSON file."""
        counts = Counter(a["image_id"] for a in self.objects)
        return np.array([counts[image["id"]] for image in self.clean["images"]], dtype=np.int64)

    @cached_property
    def objects_per_category(self) -> dict[int, int]:
        """Number of objects of each category id, zeros included."""
        counts = Counter(a["category_id"] for a in self.objects)
        return {category_id: counts[category_id] for category_id in self.category_names}

    @cached_property
    def image_sizes(self) -> np.ndarray:
        """(N, 2) int: height, width in pixels."""
        sizes = [(image["height"], image["width"]) for image in self.clean["images"]]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)

    def resize_boxes(self, size: InputSize) -> np.ndarray:
        """(M, 4) float XYXY: boxes of all objects in pixels of the resized image."""
        scales = (size.resize(self.image_sizes) / self.image_sizes)[:, ::-1]  # x, y
        rows = {image["id"]: row for row, image in enumerate(self.clean["images"])}
        boxes = np.array([a["bbox"] for a in self.objects], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        owners = np.array([rows[a["image_id"]] for a in self.objects], dtype=np.int64)
        return boxes * np.tile(scales[owners].reshape(-1, 2), 2)


@dataclass
class Context:
    """Input of the checks.

    Args:
        cfg: a full config whose class counts follow the data.
        datasets: those that could be read.
        num_gpus: number of processes that share a batch.
        detection_limit: key of the maximum number of detections per image.
        candidate_limits: keys of the numbers of candidates that detections are chosen from.
    """

    cfg: Any
    datasets: list[DatasetFacts]
    num_gpus: int = 1
    detection_limit: str = "TEST.DETECTIONS_PER_IMAGE"
    candidate_limits: tuple[str, ...] = ()
    model_error: Exception | None = field(default=None, init=False)

    @property
    def train(self) -> list[DatasetFacts]:
        """Data sets of DATASETS.TRAIN."""
        return [facts for facts in self.datasets if facts.is_train]

    @property
    def test(self) -> list[DatasetFacts]:
        """Data sets of DATASETS.TEST."""
        return [facts for facts in self.datasets if not facts.is_train]

    @property
    def num_train_images(self) -> int:
        """Number of training images, without empty ones if the config filters them."""
        if self.cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            return sum(int((facts.objects_per_image > 0).sum()) for facts in self.train)
        return sum(len(facts.clean["images"]) for facts in self.train)

    @property
    def timm_weights(self) -> str:
        """MODEL.TIMM.WEIGHTS; "" if the backbone is not one of timm's."""
        model = self.cfg.MODEL
        return model.TIMM.WEIGHTS if model.BACKBONE.NAME == "build_timm_fpn_backbone" else ""

    @property
    def has_weights(self) -> bool:
        """If True, the backbone starts from trained weights."""
        return bool(self.cfg.MODEL.WEIGHTS or self.timm_weights)

    @property
    def train_size(self) -> InputSize:
        """Size of training images; the middle one of several."""
        return self._find_train_size(lambda sizes: sizes[len(sizes) // 2])

    @property
    def largest_train_size(self) -> InputSize:
        """Size of training images; the largest one of several."""
        return self._find_train_size(max)

    def _find_train_size(self, choose: Callable[[list[int]], int]) -> InputSize:
        node = self.cfg.INPUT
        fixed = read_pair(self.cfg, "FIXED_SIZE")
        heights = read_pair(self.cfg, "FIXED_HEIGHTS_TRAIN")
        if fixed is not None and heights is not None:
            fixed = choose([heights[0], sum(heights) // 2, heights[1]]), fixed[1]
        return InputSize(choose(sorted(node.MIN_SIZE_TRAIN)), int(node.MAX_SIZE_TRAIN), fixed)

    @cached_property
    def train_boxes(self) -> list[tuple[DatasetFacts, np.ndarray]]:
        """Each training set that has objects, with their boxes (M, 4) XYXY at `train_size`."""
        size = self.train_size
        return [(facts, facts.resize_boxes(size)) for facts in self.train if facts.objects]

    @cached_property
    def model(self) -> nn.Module | None:
        """The model; None if it cannot be built, see `model_error`."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        try:
            return build_model(cfg)
        except Exception as error:  # whatever a part of it makes of a bad value
            self.model_error = error
            return None
