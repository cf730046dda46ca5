"""Layouts of published SOLOv2 checkpoints (WXinlong/SOLO, MMDetection 3 and AdelaiDet)."""

from __future__ import annotations

from instancezoo.checkpoint.mmdetection import Signature, conv_rows
from instancezoo.checkpoint.rename import Layout, Row, TrainedOn
from instancezoo.solo.convert import make_family

_FULL = {
    "R_50": "solov2/solov2_R_50_FPN_3x",
    "R_101": "solov2/solov2_R_101_FPN_3x",
    "R_101_DCN": "solov2/solov2_R_101_DCN_FPN_3x",
    "X_101_64x4d_DCN": "solov2/solov2_X_101_64x4d_DCN_FPN_3x",
}
_LIGHT = {f"R_{n}": f"solov2/solov2_light_448_R_{n}_FPN_3x" for n in (18, 34, 50)} | {
    "R_50_DCN": "solov2/solov2_light_512_R_50_DCN_FPN_3x"
}
_FULL_WIDTH, _LIGHT_WIDTH = 512, 256

# source -> names of: head, category tower, category output, kernel output, mask feature branch,
# its output
_NAMES = {
    "WXinlong/SOLO": ("bbox_head", "cate_convs", "solo_cate", "solo_kernel")
    + ("mask_feat_head", "conv_pred.0"),
    "MMDetection": ("mask_head", "cls_convs", "conv_cls", "conv_kernel")
    + ("mask_head.mask_feature_head", "conv_pred"),
}


def _make_layouts(source: str) -> list[Layout]:
    head, tower, cate, kernel, branch, predict = _NAMES[source]
    rows: tuple[Row, ...] = (
        *conv_rows(f"{head}.{tower}.{{i}}", "head.cate_tower.{i}"),
        *conv_rows(f"{head}.kernel_convs.{{i}}", "head.kernel_tower.{i}"),
        (f"{head}.{cate}.*", "head.cate_predict.*"),
        (f"{head}.{kernel}.*", "head.kernel_predict.*"),
        *conv_rows(f"{branch}.convs_all_levels.{{i}}.conv{{j}}", "head.mask_branch.levels.{i}.{j}"),
        *conv_rows(f"{branch}.{predict}", "head.mask_branch.predict"),
    )
    weight = f"{head}.{kernel}.weight"
    layouts = []
    for configs, width in ((_FULL, _FULL_WIDTH), (_LIGHT, _LIGHT_WIDTH)):
        signature = Signature((weight,), (), {weight: (None, width, None, None)})
        layouts += make_family(source, "SOLOv2", configs, signature, rows, f"{head}.{cate}")
    return layouts


_7TH_BLOCK = "backbone.bottom_up.res4.6.conv1.weight"
_ADELAIDET_ROWS: tuple[Row, ...] = (
    ("backbone.**", "backbone.**"),
    # A tower is a flat list of convolution, norm, ReLU.
    *(
        row
        for tower in ("cate_tower", "kernel_tower")
        for i in range(4)
        for row in (
            (f"ins_head.{tower}.{3 * i}.weight", f"head.{tower}.{i}.weight"),
            (f"ins_head.{tower}.{3 * i + 1}.*", f"head.{tower}.{i}.norm.*"),
        )
    ),
    ("ins_head.cate_pred.*", "head.cate_predict.*"),
    ("ins_head.kernel_pred.*", "head.kernel_predict.*"),
    ("mask_head.convs_all_levels.{i}.conv{j}.0.weight", "head.mask_branch.levels.{i}.{j}.weight"),
    ("mask_head.convs_all_levels.{i}.conv{j}.1.*", "head.mask_branch.levels.{i}.{j}.norm.*"),
    ("mask_head.conv_pred.0.weight", "head.mask_branch.predict.weight"),
    ("mask_head.conv_pred.1.*", "head.mask_branch.predict.norm.*"),
)
_ADELAIDET_LAYOUTS = tuple(
    Layout(
        name=f"AdelaiDet SOLOv2_R{depth}_3x",
        method="SOLOv2",
        config=f"solov2/solov2_R_{depth}_FPN_3x_adelaidet",
        licence="2-clause BSD for non-commercial purposes (AdelaiDet)",
        must=("ins_head.cate_tower.0.weight", "ins_head.kernel_pred.weight", *must),
        must_not=must_not,
        unused=("pixel_mean", "pixel_std"),
        rows=_ADELAIDET_ROWS,
        trained_on=TrainedOn.coco("ins_head.cate_pred.bias"),
    )
    for depth, must, must_not in ((50, (), (_7TH_BLOCK,)), (101, (_7TH_BLOCK,), ()))
)

LAYOUTS = (
    *(layout for source in _NAMES for layout in _make_layouts(source)),
    *_ADELAIDET_LAYOUTS,
)
