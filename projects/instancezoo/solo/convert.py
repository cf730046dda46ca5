"""Layouts of published SOLO and Decoupled SOLO checkpoints (WXinlong/SOLO and MMDetection 3)."""

from __future__ import annotations

from collections.abc import Mapping

from instancezoo.checkpoint.mmdetection import (
    BACKBONES,
    UNUSED,
    Signature,
    conv_rows,
    pyramid_rows,
)
from instancezoo.checkpoint.rename import Layout, Row, TrainedOn

LICENCES = {
    "WXinlong/SOLO": "2-clause BSD for non-commercial purposes (WXinlong/SOLO)",
    "MMDetection": "Apache-2.0 (MMDetection)",
}


def make_family(
    source: str,
    method: str,
    configs: Mapping[str, str],
    head: Signature,
    rows: tuple[Row, ...],
    category: str,
) -> list[Layout]:
    """Make one layout per backbone.

    Args:
        source: "WXinlong/SOLO" or "MMDetection".
        method: name of the method, as in the README's table.
        configs: key of `BACKBONES` -> config.
        head: signature of the head.
        rows: of the head.
        category: published name of the layer with one output per class.
    """
    return [
        Layout(
            name=f"{source} {config.rsplit('/', 1)[-1]}",
            method=method,
            config=config,
            licence=LICENCES[source],
            rows=(*pyramid_rows(finest_level=2), *rows),  # with the same names in both sources
            unused=UNUSED,
            trained_on=TrainedOn.coco(f"{category}.bias"),
            **vars(BACKBONES[backbone] + head),
        )
        for backbone, config in configs.items()
    ]


_SOLO = {"R_50": "solo/solo_R_50_FPN_3x", "R_101": "solo/solo_R_101_FPN_3x"}
_DECOUPLED = {name: path.replace("/solo_", "/decoupled_solo_") for name, path in _SOLO.items()}
_LIGHT = {
    "R_50": "solo/decoupled_solo_light_R_50_FPN_3x",
    "R_50_DCN": "solo/decoupled_solo_light_R_50_DCN_FPN_3x",
}

# source -> names of: category tower, mask tower; outputs of SOLO and of Decoupled SOLO, category
# and mask each
_NAMES = {
    "WXinlong/SOLO": (
        ("bbox_head.cate_convs", "bbox_head.ins_convs"),
        ("bbox_head.solo_cate", "bbox_head.solo_ins_list"),
        ("bbox_head.dsolo_cate", "bbox_head.dsolo_ins_list"),
    ),
    "MMDetection": (
        ("mask_head.cls_convs", "mask_head.mask_convs"),
        ("mask_head.conv_cls", "mask_head.conv_mask_list"),
        ("mask_head.conv_cls", "mask_head.conv_mask_list"),
    ),
}


def _make_layouts(source: str) -> list[Layout]:
    (tower, masks), (category, output), (category_2, output_2) = _NAMES[source]
    tower_rows = conv_rows(f"{tower}.{{i}}", "head.cate_branch.tower.{i}")
    solo: tuple[Row, ...] = (
        *tower_rows,
        (f"{category}.*", "head.cate_branch.predict.*"),
        *conv_rows(f"{masks}.{{i}}", "head.mask_tower.{i}"),
        (f"{output}.{{l}}.*", "head.mask_predict.{l}.*"),
    )
    decoupled: tuple[Row, ...] = (
        *tower_rows,
        (f"{category_2}.*", "head.cate_branch.predict.*"),
        (f"{output_2}_x.{{l}}.*", "head.predict_x.{l}.*"),
        (f"{output_2}_y.{{l}}.*", "head.predict_y.{l}.*"),
        *conv_rows(f"{masks}_x.{{i}}", "head.mask_towers.x.{i}"),
        *conv_rows(f"{masks}_y.{{i}}", "head.mask_towers.y.{i}"),
        *conv_rows(f"{masks}.{{i}}", "head.mask_towers.xy.{i}"),  # the light model's
    )
    first = f"{output_2}_x.0.weight"
    heads = (
        ("SOLO", _SOLO, (f"{output}.0.weight",), solo, category),
        ("Decoupled SOLO", _DECOUPLED, (first, f"{masks}_x.0.conv.weight"), decoupled, category_2),
        ("Decoupled SOLO light", _LIGHT, (first, f"{masks}.0.conv.weight"), decoupled, category_2),
    )
    return [
        layout
        for method, configs, must, rows, classes in heads
        for layout in make_family(source, method, configs, Signature(must), rows, classes)
    ]


LAYOUTS = tuple(layout for source in _NAMES for layout in _make_layouts(source))
