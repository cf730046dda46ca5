"""Dataset mappers, from a data set's record to the model's input, and their registry.

C channels, H W image size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from fvcore.common.registry import Registry
from numpy.typing import NDArray

from instancezoo.data.augmentations import build_augmentations
from instancezoo.data.coco_masks import measure_area, segmentation_to_rle
from instancezoo.data.images import ImageError, ImageReader
from instancezoo.data.semantic_maps import read_semantic_map
from instancezoo.data.transforms import (
    RandomCrop,
    adapt_to_masks,
    build_resize,
    needs_pixels,
    to_tensor,
)
from instancezoo.errors import ConfigError, check_choice, first_line

Record = dict[str, Any]
Array = NDArray[Any]

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = "Functions of (cfg, is_train) that build a mapper, by INPUT.MAPPER."

MAX_FAILURES_IN_A_ROW = 10

_logger = logging.getLogger(__name__)


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[Record], Record | None]:
    """Build the mapper named by `cfg.INPUT.MAPPER`, with augmentations for training.

    In training it is a `SkippingMapper` around it; in inference it raises an error for an image
    that cannot be mapped.

    Raises:
        ConfigError: no mapper has that name.
    """
    check_choice("INPUT.MAPPER", cfg.INPUT.MAPPER, sorted(name for name, _ in MAPPER_REGISTRY))
    mapper = MAPPER_REGISTRY.get(cfg.INPUT.MAPPER)(cfg, is_train)
    return SkippingMapper(mapper) if is_train else mapper


class SkippingMapper:
    """Another mapper, without the records that it cannot map, for whatever reason.

    The reason is logged once for each image, the result is None, and Detectron2's loader takes
    another image.

    Args:
        mapper: data set record -> model input, or None to take another image.
        max_failures: number of records in a row that may fail before it is an error; at most that
            of the data set.
    """

    def __init__(
        self,
        mapper: Callable[[Record], Record | None],
        max_failures: int = MAX_FAILURES_IN_A_ROW,
    ) -> None:
        self.mapper = mapper
        self.max_failures = max_failures
        self.unreadable_paths: set[str] = set()
        self._failures_in_a_row = 0

    def __call__(self, dataset_dict: Record) -> Record | None:
        """Map one record. Raises `ImageError` if `max_failures` in a row failed."""
        try:
            mapped = self.mapper(dataset_dict)
        except Exception as error:
            self._count_failure(str(dataset_dict.get("file_name")), error)
            return None
        self._failures_in_a_row = 0
        return mapped

    def _count_failure(self, path: str, error: Exception) -> None:
        reason = explain_failure(path, error)
        if path not in self.unreadable_paths:
            self.unreadable_paths.add(path)
            number = len(self.unreadable_paths)
            _logger.warning("%s; training goes on without it (%d left out so far)", reason, number)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self.max_failures:
            raise ImageError(
                f"{self._failures_in_a_row} images in a row could not be used (last: {reason}): "
                f"check the image folder and its files"
            ) from error


def explain_failure(path: str, error: Exception) -> str:
    """Why an image could not be mapped, in one line that names its file."""
    if isinstance(error, ImageError):
        return first_line(error)
    return f"image '{path}' cannot be processed: {type(error).__name__}: {first_line(error)}"


def is_crowd(annotation: Record) -> bool:
    """True for a region of several objects of a class."""
    return bool(annotation.get("iscrowd", 0))


def is_trained_on(annotation: Record, with_masks: bool) -> bool:
    """False for crowds and, for models with masks, for objects without a segmentation."""
    return not is_crowd(annotation) and (not with_masks or "segmentation" in annotation)


class InstanceMapper(DatasetMapper):
    """Detectron2's mapper with masks as bit masks and images of any depth.

    Augmentations, resize, flip and crop come from the config. In training, `instances` always has
    `gt_boxes`, `gt_classes` and `gt_masks` (`BitMasks`), also for an image without objects; crowds,
    objects cropped away and those below the config's smallest size are left out. With MODEL.MASK_ON
    objects without a segmentation are left out too; else their images have no `gt_masks`.

    With INPUT.CROWDS crowds stay, after the objects, and `gt_is_crowd` (M,) bool marks them.

    An image that cannot be read, or whose size differs from the record's, is an `ImageError`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[Any],
        reader: ImageReader,
        min_object_area: int = 0,
        min_object_side: int = 0,
        min_box_side: float = 0.0,
        needs_masks: bool = True,
        measure_boxes: bool = False,
        keep_crowds: bool = False,
        semantic_maps: str = "",
        semantic_input: bool = False,
        **kwargs: Any,
    ):
        """
        Args:
            is_train: if True, augment and make `instances`.
            augmentations: Detectron2 augmentations or transforms.
            reader: of the images.
            min_object_area: leave out objects of fewer pixels, counted before any augmentation.
            min_object_side: leave out objects with both box sides shorter than this, in pixels.
            min_box_side: leave out objects with a box side shorter than this after all
                augmentations, in pixels, and images that lose all their objects by it.
            needs_masks: leave out objects without a segmentation.
            measure_boxes: replace the boxes by those around the transformed masks, if there are.
            keep_crowds: keep crowds, marked by `gt_is_crowd`.
            semantic_maps: folder of semantic maps, see INPUT.SEMANTIC_MAPS.
            semantic_input: read them in inference, too.
            kwargs: further arguments of Detectron2's `DatasetMapper`.
        """
        super().__init__(is_train, augmentations=augmentations, **kwargs)
        self.reader = reader
        self.min_object_area, self.min_object_side = min_object_area, min_object_side
        self.min_box_side = min_box_side
        self.needs_masks, self.measure_boxes = needs_masks, measure_boxes
        self.keep_crowds = keep_crowds
        self.semantic_maps = semantic_maps
        self.reads_semantics = is_train or semantic_input

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        key = "SEMANTIC_MAPS" if is_train else "SEMANTIC_MAPS_TEST"
        folder, is_read = cfg.INPUT[key], is_train or cfg.INPUT.SEMANTIC_INPUT
        if folder and is_read and not Path(folder).is_dir():
            raise ConfigError(f"INPUT.{key} '{folder}' is no folder: check the path")
        arguments = super().from_config(cfg, is_train)
        augmentations = [_adapt(step, cfg, is_train) for step in arguments["augmentations"]]
        if is_train:
            augmentations = build_augmentations(cfg) + augmentations
        return arguments | {
            "augmentations": augmentations,
            "reader": ImageReader.from_config(cfg),
            "use_instance_mask": True,
            "needs_masks": cfg.MODEL.MASK_ON,
            "instance_mask_format": "bitmask",
            "min_object_area": cfg.INPUT.MIN_OBJECT_AREA,
            "min_object_side": cfg.INPUT.MIN_OBJECT_SIDE,
            "min_box_side": cfg.INPUT.MIN_BOX_SIDE,
            # A cropped mask's box is not the cropped box.
            "measure_boxes": is_train and cfg.INPUT.CROP.ENABLED,
            "keep_crowds": cfg.INPUT.CROWDS,
            "semantic_maps": folder,
            "semantic_input": cfg.INPUT.SEMANTIC_INPUT,
        }

    def __call__(self, dataset_dict: Record) -> Record | None:
        """Map one record.

        Args:
            dataset_dict: record in Detectron2's format; not changed.

        Returns:
            The record with `image` (C, H, W) from `ImageReader`, and in training `instances` in
            place of `annotations`; with `sem_seg` (H, W) long if there is a semantic map, in
            inference only if it is an input; None if `min_box_side` leaves out the last object.

        Raises:
            ImageError: the image cannot be used.
        """
        record = copy.deepcopy(dataset_dict)
        path = record.pop("sem_seg_file_name", None)
        image = self.reader.read_record(record)
        if self.semantic_maps:
            path = Path(self.semantic_maps) / f"{Path(record['file_name']).stem}.png"
        sem_seg = read_semantic_map(path, image.shape) if path and self.reads_semantics else None
        annotations = record.pop("annotations", None) if self.is_train else None
        if annotations is not None:
            annotations = self._select_annotations(annotations, record)
        aug_input = T.AugInput(image, boxes=_stack_boxes(annotations), sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        record["image"] = to_tensor(aug_input.image)
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        if not self.is_train:
            record.pop("annotations", None)
            return record
        if annotations is not None:
            if needs_pixels(transforms):
                _fill_polygons(annotations, record["height"], record["width"])
            instances = self._make_instances(annotations, transforms, aug_input.image.shape[:2])
            if self.min_box_side:
                num_before, instances = len(annotations), self._drop_thin(instances)
                if num_before and not len(instances):
                    return None
            record["instances"] = instances
        return record

    def _select_annotations(self, annotations: list[Record], record: Record) -> list[Record]:
        """Those that are used, crowds last, and all or none of them with a segmentation."""
        selected = [
            annotation
            for annotation in annotations
            if (self.keep_crowds or not is_crowd(annotation))
            and (not self.needs_masks or "segmentation" in annotation)
            and self._is_large_enough(annotation, record)
        ]
        selected.sort(key=is_crowd)
        if not all("segmentation" in annotation for annotation in selected):
            for annotation in selected:
                annotation.pop("segmentation", None)
        return selected

    def _make_instances(
        self, annotations: list[Record], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> Instances:
        transforms = adapt_to_masks(transforms)
        parts = []
        for flag in (False, True):
            # Detectron2 leaves out what is still marked as a crowd.
            part = [{**a, "iscrowd": 0} for a in annotations if is_crowd(a) == flag]
            if part:
                record: Record = {"annotations": part}
                super()._transform_annotations(record, transforms, image_shape)
                instances = record["instances"]
                if self.keep_crowds:
                    instances.gt_is_crowd = torch.full((len(instances),), flag)
                parts.append(instances)
        instances = Instances.cat(parts) if parts else self._make_empty_instances(image_shape)
        if parts and self.measure_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return instances

    def _make_empty_instances(self, image_shape: tuple[int, int]) -> Instances:
        # Detectron2 makes no masks where there are no objects; losses need the empty ones.
        instances = Instances(image_shape)
        instances.gt_boxes = Boxes(torch.zeros(0, 4))
        instances.gt_classes = torch.zeros(0, dtype=torch.int64)
        instances.gt_masks = BitMasks(torch.zeros(0, *image_shape, dtype=torch.bool))
        if self.keep_crowds:
            instances.gt_is_crowd = torch.zeros(0, dtype=torch.bool)
        return instances

    def _drop_thin(self, instances: Instances) -> Instances:
        boxes = instances.gt_boxes.tensor
        return instances[((boxes[:, 2:] - boxes[:, :2]) >= self.min_box_side).all(dim=1)]

    def _is_large_enough(self, annotation: Record, record: Record) -> bool:
        if self.min_object_side:
            bbox, mode = annotation["bbox"], annotation["bbox_mode"]
            _, _, width, height = BoxMode.convert(list(bbox), mode, BoxMode.XYWH_ABS)
            if max(width, height) < self.min_object_side:
                return False
        if not self.min_object_area or "segmentation" not in annotation:
            return True
        area = measure_area(annotation["segmentation"], record["height"], record["width"])
        return area >= self.min_object_area


def _fill_polygons(annotations: list[Record], height: int, width: int) -> None:
    for annotation in annotations:
        if "segmentation" in annotation:
            mask = segmentation_to_rle(annotation["segmentation"], height, width)
            annotation["segmentation"] = mask


def _stack_boxes(annotations: list[Record] | None) -> Array | None:
    """Boxes (M, 4) XYXY of the objects that are no crowds, before any augmentation."""
    if annotations is None:
        return None
    boxes = [
        BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in annotations
        if not is_crowd(annotation)
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _adapt(step: T.Augmentation, cfg: CfgNode, is_train: bool) -> T.Augmentation:
    """Our version of a step that Detectron2 chose by the config."""
    if isinstance(step, T.ResizeShortestEdge):
        return build_resize(cfg, is_train)
    if isinstance(step, T.RandomCrop):
        return RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
    return step


@MAPPER_REGISTRY.register()
def instance(cfg: CfgNode, is_train: bool) -> InstanceMapper:
    """The mapper of all methods that learn from instance masks."""
    return InstanceMapper(cfg, is_train)
