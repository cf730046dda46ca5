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

from instancezoo.data.coco_masks import measure_area
from instancezoo.data.images import ImageError, ImageReader
from instancezoo.data.transforms import RandomCrop, build_resize, to_tensor
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


def is_trained_on(annotation: Record, with_masks: bool) -> bool:
    """False for crowds and, for models with masks, for objects without a segmentation."""
    return not annotation.get("iscrowd", 0) and (not with_masks or "segmentation" in annotation)


class InstanceMapper(DatasetMapper):
    """Detectron2's mapper with masks as bit masks and images of any depth.

    Resize, flip and crop come from the config. In training, `instances` always has `gt_boxes`,
    `gt_classes` and `gt_masks` (`BitMasks`), also for an image without objects; crowds, objects
    cropped away and those below the config's smallest size are left out. With MODEL.MASK_ON
    objects without a segmentation are left out too; else their images have no `gt_masks`.

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
        needs_masks: bool = True,
        measure_boxes: bool = False,
        semantic_maps: str = "",
        **kwargs: Any,
    ):
        """
        Args:
            is_train: if True, augment and make `instances`.
            augmentations: Detectron2 augmentations or transforms.
            reader: of the images.
            min_object_area: leave out objects of fewer pixels, counted before any augmentation.
            min_object_side: leave out objects with both box sides shorter than this, in pixels.
            needs_masks: leave out objects without a segmentation.
            measure_boxes: replace the boxes by those around the transformed masks, if there are.
            semantic_maps: folder of semantic maps, see INPUT.SEMANTIC_MAPS.
            kwargs: further arguments of Detectron2's `DatasetMapper`.
        """
        super().__init__(is_train, augmentations=augmentations, **kwargs)
        self.reader = reader
        self.min_object_area, self.min_object_side = min_object_area, min_object_side
        self.needs_masks, self.measure_boxes = needs_masks, measure_boxes
        self.semantic_maps = semantic_maps

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        folder = cfg.INPUT.SEMANTIC_MAPS
        if folder and is_train and not Path(folder).is_dir():
            raise ConfigError(f"INPUT.SEMANTIC_MAPS '{folder}' is no folder: check the path")
        arguments = super().from_config(cfg, is_train)
        augmentations = [_adapt(step, cfg, is_train) for step in arguments["augmentations"]]
        return arguments | {
            "augmentations": augmentations,
            "reader": ImageReader.from_config(cfg),
            "use_instance_mask": True,
            "needs_masks": cfg.MODEL.MASK_ON,
            "instance_mask_format": "bitmask",
            "min_object_area": cfg.INPUT.MIN_OBJECT_AREA,
            "min_object_side": cfg.INPUT.MIN_OBJECT_SIDE,
            "semantic_maps": folder,
            # A cropped mask's box is not the cropped box.
            "measure_boxes": is_train and cfg.INPUT.CROP.ENABLED,
        }

    def __call__(self, dataset_dict: Record) -> Record:
        """Map one record.

        Args:
            dataset_dict: record in Detectron2's format; not changed.

        Returns:
            The record with `image` (C, H, W) from `ImageReader`, and in training `instances` in
            place of `annotations`, and `sem_seg` (H, W) long if there is a semantic map.

        Raises:
            ImageError: the image cannot be used.
        """
        record = copy.deepcopy(dataset_dict)
        path = record.pop("sem_seg_file_name", None)
        image = self.reader.read_record(record)
        if self.semantic_maps:
            path = Path(self.semantic_maps) / f"{Path(record['file_name']).stem}.png"
        sem_seg = read_semantic_map(path, image.shape) if path and self.is_train else None
        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        record["image"] = to_tensor(aug_input.image)
        if not self.is_train:
            record.pop("annotations", None)
            return record
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        if "annotations" in record:
            self._transform_annotations(record, transforms, aug_input.image.shape[:2])
        return record

    def _transform_annotations(
        self, dataset_dict: Record, transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        dataset_dict["annotations"] = [
            annotation
            for annotation in dataset_dict["annotations"]
            if is_trained_on(annotation, self.needs_masks)
            and self._is_large_enough(annotation, dataset_dict)
        ]
        if not all("segmentation" in annotation for annotation in dataset_dict["annotations"]):
            for annotation in dataset_dict["annotations"]:
                annotation.pop("segmentation", None)
        if dataset_dict["annotations"]:
            transforms = T.TransformList([_MaskCrop.wrap(t) for t in transforms.transforms])
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            instances = dataset_dict["instances"]
            if self.measure_boxes and instances.has("gt_masks"):
                instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
            return
        # Detectron2 makes no masks where there are no objects; losses need the empty ones.
        del dataset_dict["annotations"]
        instances = dataset_dict["instances"] = Instances(image_shape)
        instances.gt_boxes = Boxes(torch.zeros(0, 4))
        instances.gt_classes = torch.zeros(0, dtype=torch.int64)
        instances.gt_masks = BitMasks(torch.zeros(0, *image_shape, dtype=torch.bool))

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


def read_semantic_map(path: str | Path, image_shape: tuple[int, ...]) -> Array:
    """Read the class of each pixel, which of a palette image is the index.

    Args:
        path: image file of one channel, of 8 or 16 bits.
        image_shape: height and width of the image that it belongs to, and anything after them.

    Returns:
        (H, W) uint8, or float32 of whole numbers: torch resizes no wider integers.

    Raises:
        ImageError: the file cannot be read, or is of another size or kind.
    """
    labels = ImageReader(None, num_channels=None, max_pixels=0).read_values(path)
    labels = labels[:, :, 0] if labels.shape[2:] == (1,) else labels
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"semantic map '{path}' has the shape {labels.shape} and the type {labels.dtype}: it "
            "must have one channel of whole numbers, the classes"
        )
    if labels.shape != image_shape[:2]:
        raise ImageError(
            f"semantic map '{path}' is {labels.shape[1]} x {labels.shape[0]} pixels, but its image "
            f"{image_shape[1]} x {image_shape[0]}"
        )
    return labels if labels.dtype == np.uint8 else labels.astype(np.float32)


def _adapt(step: T.Augmentation, cfg: CfgNode, is_train: bool) -> T.Augmentation:
    """Our version of a step that Detectron2 chose by the config."""
    if isinstance(step, T.ResizeShortestEdge):
        return build_resize(cfg, is_train)
    if isinstance(step, T.RandomCrop):
        return RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
    return step


class _MaskCrop(T.CropTransform):
    """A crop that only shifts polygons, since filling them cuts them to the frame.

    Detectron2's own crop intersects polygons with the frame and needs shapely for that.
    """

    @classmethod
    def wrap(cls, transform: T.Transform) -> T.Transform:
        if not isinstance(transform, T.CropTransform):
            return transform
        names = ("x0", "y0", "w", "h", "orig_w", "orig_h")
        return cls(*(getattr(transform, name) for name in names))

    def apply_polygons(self, polygons: list[Array]) -> list[Array]:
        return [self.apply_coords(polygon) for polygon in polygons]


@MAPPER_REGISTRY.register()
def instance(cfg: CfgNode, is_train: bool) -> InstanceMapper:
    """The mapper of all methods that learn from instance masks."""
    return InstanceMapper(cfg, is_train)
