"""Data sets and mappers; importing this package registers the built-in sets and the mappers."""

from instancezoo.data.coco_dataset import DatasetError, check_coco
from instancezoo.data.coco_report import AnnotationReport
from instancezoo.data.datasets import (
    load_metadata,
    parse_dataset_argument,
    register_dataset,
    register_shapes,
)
from instancezoo.data.images import ImageError, ImageReader, read_image
from instancezoo.data.mappers import MAPPER_REGISTRY, InstanceMapper, build_mapper

__all__ = [
    "MAPPER_REGISTRY",
    "AnnotationReport",
    "DatasetError",
    "ImageError",
    "ImageReader",
    "InstanceMapper",
    "build_mapper",
    "check_coco",
    "load_metadata",
    "parse_dataset_argument",
    "read_image",
    "register_dataset",
]

register_shapes()
