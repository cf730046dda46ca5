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
_RESNETS = ("R_50", "R_101")
_RESNEXTS = ("X_101_32x4d", "X_101_64x4d")

# (name, method, backbone, signature of the heads, config)
_NETWORKS = (
    *(("htc", "HTC", name, _HTC, f"htc/htc_{name}_FPN_20e") for name in (*_RESNETS, *_RESNEXTS)),
    (
        *("htc", "HTC", "X_101_64x4d_DCN", _HTC),
        "htc/htc_X_101_64x4d_DCN_FPN_20e_multiscale",
    ),
    *(
        ("htc_without_semantic", "HTC", name, _PLAIN, f"htc/htc_without_semantic_{name}_FPN_1x")
        for name in ("R_50",)
    ),
    *(
        (
            *("cascade_mask_rcnn", "Cascade Mask R-CNN", name, _CASCADE),
            f"cascade_mask_rcnn/cascade_mask_rcnn_{name}_FPN_1x_mmdet",
        )
        for name in _RESNETS
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
    )


LAYOUTS = tuple(_make_layout(*network) for network in _NETWORKS)
