"""Boundary U-Net (Data Science Bowl 2018); importing it registers the method."""

from instancezoo.method import Method

from .config import add_boundary_config, keep_all_pixels
from .segmentor import BoundaryUNet

METHOD = Method(
    name="Boundary U-Net",
    registry_names=("BoundaryUNet",),
    add_config=add_boundary_config,
    detection_limit="MODEL.BOUNDARY.MAX_INSTANCES",
    score_keys=("MODEL.BOUNDARY.SCORE_THRESH",),
    prepare_untrained=keep_all_pixels,
    stages={"group": "group pixels", "make_masks": "make masks"},
)

__all__ = ["METHOD", "BoundaryUNet"]
