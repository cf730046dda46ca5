"""Config keys of the boundary U-Net."""

from __future__ import annotations

from math import inf

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from instancezoo.errors import ConfigError, check_choice, check_numbers
from instancezoo.modeling.masks.label import RESIZES

from .losses import VARIANTS

_LIMITS = {
    "NUM_CLASSES": (1, 10**5),
    "WEIGHT_MAX": (0, 1e6),
    "WEIGHT_SIGMA": (1e-3, 100),
    "OBJECT_LOSS_WEIGHT": (0, 1e6),
    "SEM_LOSS_WEIGHT": (0, 1e6),
    "T_SEED": (0, 1),
    "T_MASK": (0, 255),
    "T_OBJECT": (0, 255),
    "MIN_SIZE": (1, inf),
    "MAX_INSTANCES": (1, inf),
}


def add_boundary_config(cfg: CfgNode) -> None:
    """Add `cfg.MODEL.BOUNDARY`."""
    node = cfg.MODEL.setdefault("BOUNDARY", CfgNode())
    node.NUM_CLASSES = 80
    # The backbone's map, at the image's own size.
    node.IN_FEATURES = ["u1"]
    # "A": 0.5 cross-entropy, 0.3 and 0.2 Dice of interior and border. "B": 0.6, 0.2, 0.2, hardly
    # smoothed. "sigmoid": whole objects and border as two sigmoids, weighted as A. "weighted": the
    # cross-entropy alone, weighted as in the U-Net paper.
    node.LOSS = "A"
    # "weighted": largest additional weight (w_0) of background between two objects, and the pixels
    # (sigma) by which it falls with the distances to both.
    node.WEIGHT_MAX = 10.0
    node.WEIGHT_SIGMA = 5.0
    # Border all along the contact of two objects. False: only what the published recipe gives with
    # today's scikit-image, which leaves the middle of long contacts without.
    node.BORDER_CONTACTS = True
    # Also predict whole objects, into which the found ones grow at last: interiors end where
    # borders begin. Has no effect on "sigmoid", which predicts them anyway.
    node.OBJECTS = False
    # Weights of the losses of whole objects and, with several classes, of their classes.
    node.OBJECT_LOSS_WEIGHT = 0.5
    node.SEM_LOSS_WEIGHT = 0.5
    # Seeds are parts where interior * (1 - border) exceeds this.
    node.T_SEED = 0.5
    # They grow where the interior exceeds this, of 255, and at last where whole objects exceed
    # T_OBJECT, up to 3 pixels further.
    node.T_MASK = 70
    node.T_OBJECT = 90
    # Fewest pixels of seeds and of objects.
    node.MIN_SIZE = 10
    # Leave a pixel free between objects that meet as they grow.
    node.WATERSHED_LINE = True
    # Most objects in an image, the most probable first.
    node.MAX_INSTANCES = 1000
    # Detections with a lower score, the mean probability of the interior, are dropped.
    node.SCORE_THRESH = 0.05
    # How masks come to the original size: "nearest", or "bilinear", by which two masks may share a
    # pixel that is half of each.
    node.MASK_RESIZE = "nearest"


def check_boundary_config(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
    """Check the keys for a backbone of `shapes`. Raises `ConfigError`."""
    node = cfg.MODEL.BOUNDARY
    check_numbers("MODEL.BOUNDARY", node, _LIMITS)
    check_choice("MODEL.BOUNDARY.LOSS", node.LOSS, VARIANTS)
    check_choice("MODEL.BOUNDARY.MASK_RESIZE", node.MASK_RESIZE, RESIZES)
    if len(node.IN_FEATURES) != 1:
        raise ConfigError(
            f"MODEL.BOUNDARY.IN_FEATURES is {list(node.IN_FEATURES)}; name one map, such as u1"
        )
    name = node.IN_FEATURES[0]
    check_choice("MODEL.BOUNDARY.IN_FEATURES", name, shapes)
    if shapes[name].stride != 1:
        raise ConfigError(
            f"MODEL.BOUNDARY.IN_FEATURES: {name} of MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} "
            f"has stride {shapes[name].stride}; it must be 1, such as u1 of UNetBackbone or "
            "build_unet_backbone"
        )


def keep_all_pixels(cfg: CfgNode) -> None:
    """Let pixels of any probability form objects of any size, in place."""
    node = cfg.MODEL.BOUNDARY
    node.T_SEED = 0.0
    node.T_MASK = 0
    node.MIN_SIZE = 1
