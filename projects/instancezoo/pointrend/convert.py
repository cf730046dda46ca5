"""Layouts of published PointRend checkpoints (Detectron2's project and MMDetection)."""

from __future__ import annotations

from instancezoo.checkpoint.mmdetection import BACKBONES, UNUSED, pyramid_rows, region_rows
from instancezoo.checkpoint.rename import Layout, Row, TrainedOn

_DETECTRON2_LICENCE = "CC BY-SA 3.0 (Detectron2's PointRend project)"
_MMDET_LICENCE = "Apache-2.0 (MMDetection)"
_RES4_7TH_BLOCK = "backbone.bottom_up.res4.6.conv1.weight"  # R-50 has six, R-101 has 23
_WIDTH = "backbone.bottom_up.res2.0.conv1.weight"
_OUTPUT = "roi_heads.**coarse_head.prediction.weight"
_COARSE, _POINT = "roi_heads.mask_head.coarse_head", "roi_heads.mask_head.point_head"
_POINT_OUTPUT = "roi_heads.**point_head.predictor.bias"
_CITYSCAPES = TrainedOn("cityscapes_fine_instance_seg_train", _POINT_OUTPUT, 8)
# 8 classes of Cityscapes, 7 x 7 cells each
_CITYSCAPES_OUTPUT = (8 * 7 * 7, 1024)

# Files of 2020 (mask_coarse_head, mask_point_head), today's, and the form half-way between.
_DETECTRON2_ROWS: tuple[Row, ...] = (
    ("backbone.**", "backbone.**"),
    ("proposal_generator.rpn_head.**", "proposal_generator.rpn_head.**"),
    ("roi_heads.mask_coarse_head.coarse_mask_fc{k}.*", f"{_COARSE}.fc{{k}}.*"),
    ("roi_heads.mask_coarse_head.**", f"{_COARSE}.**"),
    ("roi_heads.mask_point_head.**", f"{_POINT}.**"),
    (f"{_COARSE}.coarse_mask_fc{{k}}.*", f"{_COARSE}.fc{{k}}.*"),
    ("roi_heads.**", "roi_heads.**"),
)

# config -> (has res4.6, width of res2's bottleneck)
_CONFIGS = {
    "pointrend/pointrend_R_50_FPN_3x": (False, 64),
    "pointrend/pointrend_R_50_FPN_1x_cityscapes": (False, 64),
    "pointrend/pointrend_R_101_FPN_3x": (True, 64),
    "pointrend/pointrend_X_101_32x8d_FPN_3x": (True, 256),
}


def _make_layout(config: str, is_deep: bool, width: int) -> Layout:
    is_cityscapes = config.endswith("cityscapes")
    return Layout(
        name=f"Detectron2 {config.rsplit('/', 1)[-1].removesuffix('_3x')}",
        method="PointRend",
        config=config,
        licence=_DETECTRON2_LICENCE,
        rows=_DETECTRON2_ROWS,
        unused=("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.**"),
        must=(
            "proposal_generator.rpn_head.conv.weight",
            "roi_heads.box_predictor.cls_score.weight",
            _OUTPUT,
            *((_RES4_7TH_BLOCK,) if is_deep else ()),
        ),
        must_not=() if is_deep else (_RES4_7TH_BLOCK,),
        shapes={
            _WIDTH: (width, 64, 1, 1),
            **({_OUTPUT: _CITYSCAPES_OUTPUT} if is_cityscapes else {}),
        },
        other_shapes={} if is_cityscapes or is_deep else {_OUTPUT: _CITYSCAPES_OUTPUT},
        trained_on=_CITYSCAPES if is_cityscapes else TrainedOn.coco(_POINT_OUTPUT),
    )


_MMDET_LAYOUT = Layout(
    name="MMDetection point_rend_r50_caffe_fpn",
    method="PointRend",
    config="pointrend/pointrend_R_50_FPN_3x",
    licence=_MMDET_LICENCE,
    must=(
        *BACKBONES["R_50"].must,
        "roi_head.bbox_head.fc_reg.weight",
        "roi_head.mask_head.downsample_conv.conv.weight",
        "roi_head.point_head.fc_logits.weight",
    ),
    must_not=BACKBONES["R_50"].must_not,
    unused=UNUSED,
    style="caffe",
    trained_on=TrainedOn.coco("roi_head.point_head.fc_logits.bias"),
    rows=(
        *pyramid_rows(finest_level=2),
        *region_rows(),
        ("roi_head.mask_head.downsample_conv.conv.*", f"{_COARSE}.reduce_spatial_dim_conv.*"),
        ("roi_head.mask_head.fcs.{k}.*", f"{_COARSE}.fc{{k+1}}.*"),
        ("roi_head.mask_head.fc_logits.*", f"{_COARSE}.prediction.*"),
        ("roi_head.point_head.fcs.{k}.conv.*", f"{_POINT}.fc{{k+1}}.*"),
        ("roi_head.point_head.fc_logits.*", f"{_POINT}.predictor.*"),
    ),
)

LAYOUTS = (
    *(_make_layout(config, *network) for config, network in _CONFIGS.items()),
    _MMDET_LAYOUT,
)
