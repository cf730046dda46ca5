"""Data sets, mappers and augmentations; importing this package registers all of them."""

from instancezoo.data.augmentations import AUGMENTATION_REGISTRY, build_augmentations
from instancezoo.data.coco_dataset import DatasetError, check_coco
from instancezoo.data.coco_report import AnnotationReport
from instancezoo.data.datasets import (
    load_metadata,
    parse_dataset_argument,
    register_dataset,
    register_shapes,
)
from instancezoo.data.geometric import RandomRotation90, RandomScale
from instancezoo.data.images import ImageError, ImageReader, read_image
from instancezoo.data.mappers import MAPPER_REGISTRY, InstanceMapper, build_mapper
from instancezoo.data.photometric import PhotometricDistort
from instancezoo.data.windows import ExpandCanvas, RandomSampleCrop

__all__ = [
    "AUGMENTATION_REGISTRY",
    "MAPPER_REGISTRY",
    "AnnotationReport",
    "DatasetError",
    "ExpandCanvas",
    "ImageError",
    "ImageReader",
    "InstanceMapper",
    "PhotometricDistort",
    "RandomRotation90",
    "RandomSampleCrop",
    "RandomScale",
    "build_augmentations",
    "build_mapper",
    "check_coco",
    "load_metadata",
    "parse_dataset_argument",
    "read_image",
    "register_dataset",
]

register_shapes()
