"""From a data set's record to what a model takes: a registry of mappers.

H W image size, M instances.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, check_image_size
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from fvcore.common.registry import Registry
from numpy.typing import NDArray

from instancezoo.data.coco_masks import measure_area
from instancezoo.data.images import ImageError, read_image
from instancezoo.data.transforms import build_resize
from instancezoo.errors import ConfigError

__all__ = [
    "MAPPER_REGISTRY",
    "ImageError",
    "InstanceMapper",
    "build_mapper",
    "read_image",
]

Record = dict[str, Any]
Array = NDArray[Any]

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Functions of a config and `is_train` that build a mapper, by the name that `INPUT.MAPPER` holds.
"""

MAX_FAILURES_IN_A_ROW = 10

_logger = logging.getLogger(__name__)


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[Record], Record | None]:
    """Build the mapper that `cfg.INPUT.MAPPER` names.

    Args:
        cfg: the whole config.
        is_train: with augmentations and ground truth, or neither.

    Raises:
        ConfigError: no mapper has that name.
    """
    name = cfg.INPUT.MAPPER
    if name not in MAPPER_REGISTRY:
        known = ", ".join(sorted(key for key, _ in MAPPER_REGISTRY))
        raise ConfigError(f"INPUT.MAPPER is '{name}', but the mappers are: {known}")
    return MAPPER_REGISTRY.get(name)(cfg, is_train)


class InstanceMapper(DatasetMapper):
    """Detectron2's mapper with masks as bit masks, and an answer to broken images.

    Resize, flip and crop come from the config. In training, `instances` always has `gt_boxes`,
    `gt_classes` and `gt_masks` (`BitMasks`), also for an image without objects; crowds, objects
    that were cropped away and those that the config calls too small are left out.

    An image that cannot be read, or is not of the size that the record states, is left out of
    training: its path is logged once, the mapper returns None, and Detectron2's loader takes
    another image. In inference it is an `ImageError`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[Any],
        image_format: str,
        min_object_area: int = 0,
        min_object_side: int = 0,
        **kwargs: Any,
    ):
        """
        Args:
            is_train: whether to augment and to make `instances`.
            augmentations: Detectron2 augmentations or transforms.
            image_format: as in `read_image`.
            min_object_area: objects of fewer pixels are left out; before any augmentation.
            min_object_side: so are those whose box is shorter than this both ways.
            kwargs: further arguments of Detectron2's `DatasetMapper`.
        """
        super().__init__(is_train, augmentations=augmentations, image_format=image_format, **kwargs)
        self.unreadable_paths: set[str] = set()
        self._failures_in_a_row = 0
        self.min_object_area, self.min_object_side = min_object_area, min_object_side

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        arguments["use_instance_mask"] = True
        arguments["instance_mask_format"] = "bitmask"
        arguments["augmentations"] = [
            build_resize(cfg, is_train) if isinstance(step, T.ResizeShortestEdge) else step
            for step in arguments["augmentations"]
        ]
        arguments["min_object_area"] = cfg.INPUT.MIN_OBJECT_AREA
        arguments["min_object_side"] = cfg.INPUT.MIN_OBJECT_SIDE
        # A cropped mask's box is not the cropped box.
        arguments["recompute_boxes"] = is_train and cfg.INPUT.CROP.ENABLED
        return arguments

    def __call__(self, dataset_dict: Record) -> Record | None:
        """Map one record.

        Args:
            dataset_dict: record in Detectron2's format; it is not changed.

        Returns:
            The record with `image` (C, H, W) uint8, and in training `instances` in place of
            `annotations`; None if the image is unreadable in training.

        Raises:
            ImageError: the image is unreadable, in inference; or ten in a row were, in training.
        """
        record = copy.deepcopy(dataset_dict)
        try:
            image, sem_seg = self._read(record), self._read_sem_seg(record)
        except ImageError as error:
            if not self.is_train:
                raise
            self._count_failure(record["file_name"], error)
            return None
        self._failures_in_a_row = 0
        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        record["image"] = torch.from_numpy(
            np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        )  # (C, H, W)
        if not self.is_train:
            record.pop("annotations", None)
            return record
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if "annotations" in record:
            self._transform_annotations(record, transforms, aug_input.image.shape[:2])
        return record

    def _transform_annotations(
        self, dataset_dict: Record, transforms: Any, image_shape: tuple[int, int]
    ) -> None:
        instances = [
            annotation
            for annotation in dataset_dict["annotations"]
            if annotation.get("iscrowd", 0) == 0 and self._is_large_enough(annotation, dataset_dict)
        ]
        dataset_dict["annotations"] = instances
        if instances:
            transforms = T.TransformList([_MaskCrop.wrap(t) for t in transforms.transforms])
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        # Detectron2 gives no masks where there are no objects; losses want the empty ones.
        del dataset_dict["annotations"]
        dataset_dict["instances"] = _make_empty_instances(image_shape)

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

    def _read(self, record: Record) -> Array:
        image = read_image(record["file_name"], self.image_format)
        try:
            check_image_size(record, image)
        except SizeMismatchError as error:
            height, width = image.shape[:2]
            raise ImageError(
                f"image '{record['file_name']}' is {width} x {height} pixels, but its annotations "
                f"are for {record.get('width')} x {record.get('height')}"
            ) from error
        return image

    def _read_sem_seg(self, record: Record) -> Array | None:
        path = record.pop("sem_seg_file_name", None)
        return read_image(path, "L")[:, :, 0] if path is not None and self.is_train else None

    def _count_failure(self, path: str, error: ImageError) -> None:
        if path not in self.unreadable_paths:
            self.unreadable_paths.add(path)
            _logger.warning("%s; training goes on without it", error)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise ImageError(
                f"{self._failures_in_a_row} images in a row could not be read, the last because "
                f"{error}: are the image folder and its files whole?"
            ) from error


class _MaskCrop(T.CropTransform):
    """A crop that only moves polygons: filling them cuts them to the frame.

    Detectron2's own crop intersects polygons with the frame, for which it imports shapely.
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
    """The mapper of every method that learns from instance masks."""
    return InstanceMapper(cfg, is_train)


def _make_empty_instances(image_shape: tuple[int, int]) -> Instances:
    instances = Instances(image_shape)
    instances.gt_boxes = Boxes(torch.zeros(0, 4))
    instances.gt_classes = torch.zeros(0, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.zeros(0, *image_shape, dtype=torch.bool))
    return instances
