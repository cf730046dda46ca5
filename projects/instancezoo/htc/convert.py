"""Layouts of published HTC and Cascade Mask R-CNN checkpoints (MMDetection)."""

from __future__ import annotations

from instancezoo.checkpoint.mmdetection import (
    BACKBONES,
    UNUSED,
    Signature,
    mask_rows,
    pyramid_rows,
    region_rows,
)
from instancezoo.checkpoint.rename import Layout, Row, TrainedOn

_LICENCE = "Apache-2.0 (MMDetection)"
_CLASSES = "roi_head.mask_head.0.conv_logits.bias"
_FLOW, _SEMANTIC = "roi_head.mask_head.1.conv_res.conv.weight", "roi_head.semantic_head.**"
_THEIRS, _OURS = "roi_head.semantic_head", "roi_heads.semantic_head"
_ROWS: tuple[Row, ...] = (
    *pyramid_rows(finest_level=2),
    *region_rows(),
    *mask_rows(stage=".{s}"),
    ("roi_head.mask_head.{s}.conv_res.conv.*", "roi_heads.mask_head.{s}.conv_res.*"),
    (f"{_THEIRS}.conv_logits.*", f"{_OURS}.conv_logits.*"),
    (f"{_THEIRS}.**.conv.*", f"{_OURS}.**.*"),
)
_BOXES = Signature(("roi_head.bbox_head.2.fc_cls.weight", _CLASSES))
_HTC = _BOXES + Signature((_FLOW, _SEMANTIC))
_PLAIN = _BOXES + Signature((_FLOW,), (_SEMANTIC,))
_CASCADE = _BOXES + Signature((), (_FLOW, _SEMANTIC))
_CASCADE_CONFIG = "cascade_mask_rcnn/cascade_mask_rcnn_{}_FPN_1x_mmdet"

# (name, method, backbone, signature of the heads, config)
_NETWORKS = (
    ("htc", "HTC", "R_50", _HTC, "htc/htc_R_50_FPN_20e"),
    ("htc", "HTC", "R_101", _HTC, "htc/htc_R_101_FPN_20e"),
    ("htc", "HTC", "X_101_32x4d", _HTC, "htc/htc_X_101_32x4d_FPN_20e"),
    ("htc", "HTC", "X_101_64x4d", _HTC, "htc/htc_X_101_64x4d_FPN_20e"),
    ("htc", "HTC", "X_101_64x4d_DCN", _HTC, "htc/htc_X_101_64x4d_DCN_FPN_20e_multiscale"),
    ("htc_without_semantic", "HTC", "R_50", _PLAIN, "htc/htc_without_semantic_R_50_FPN_1x"),
    *(
        ("cascade_mask_rcnn", "Cascade Mask R-CNN", name, _CASCADE, _CASCADE_CONFIG.format(name))
        for name in ("R_50", "R_101", "X_101_32x4d", "X_101_64x4d")
    ),
)


def _make_layout(name: str, method: str, backbone: str, heads: Signature, config: str) -> Layout:
    signature = BACKBONES[backbone] + heads
    return Layout(
        name=f"MMDetection {name}_{backbone}_FPN",
        method=method,
        config=config,
        licence=_LICENCE,
        rows=_ROWS,
        unused=UNUSED,
        must=signature.must,
        must_not=signature.must_not,
        shapes=signature.shapes,
        trained_on=TrainedOn.coco(_CLASSES),
        style="pytorch",
    )


LAYOUTS = tuple(_make_layout(*network) for network in _NETWORKS)
