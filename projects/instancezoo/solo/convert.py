"""Layouts of published SOLO and Decoupled SOLO checkpoints (WXinlong/SOLO and MMDetection 3)."""

from __future__ import annotations

from instancezoo.checkpoint.mmdetection import (
    BACKBONES,
    UNUSED,
    Signature,
    conv_rows,
    pyramid_rows,
)
from instancezoo.checkpoint.rename import Layout, Row

SOLO_LICENCE = "2-clause BSD for non-commercial purposes (WXinlong/SOLO)"
MMDET_LICENCE = "Apache-2.0 (MMDetection)"
# Backbone and neck have the same names in WXinlong/SOLO and in MMDetection.
PYRAMID_ROWS = pyramid_rows(finest_level=2)


def make_family(
    source: str, method: str, configs: dict[str, str], head: Signature, rows: tuple[Row, ...]
) -> list[Layout]:
    """Make one layout per backbone.

    Args:
        source: "WXinlong/SOLO" or "MMDetection".
        method: name of the method, as in the README's table.
        configs: key of `BACKBONES` -> config.
        head: signature of the head.
        rows: of the head.
    """
    layouts = []
    for backbone, config in configs.items():
        signature = BACKBONES[backbone] + head
        layouts.append(
            Layout(
                name=f"{source} {config.rsplit('/', 1)[-1]}",
                method=method,
                config=config,
                licence=SOLO_LICENCE if source == "WXinlong/SOLO" else MMDET_LICENCE,
                rows=(*PYRAMID_ROWS, *rows),
                unused=UNUSED,
                must=signature.must,
                must_not=signature.must_not,
                shapes=signature.shapes,
            )
        )
    return layouts


_SOLO = {"R_50": "solo/solo_R_50_FPN_3x", "R_101": "solo/solo_R_101_FPN_3x"}
_DECOUPLED = {name: path.replace("/solo_", "/decoupled_solo_") for name, path in _SOLO.items()}
_LIGHT = {
    "R_50": "solo/decoupled_solo_light_R_50_FPN_3x",
    "R_50_DCN": "solo/decoupled_solo_light_R_50_DCN_FPN_3x",
}

# source -> names of: head, category tower, category output, mask tower, mask output,
# category output of Decoupled SOLO, mask output of Decoupled SOLO
_NAMES = {
    "WXinlong/SOLO": ("bbox_head", "cate_convs", "solo_cate", "ins_convs", "solo_ins_list")
    + ("dsolo_cate", "dsolo_ins_list"),
    "MMDetection": ("mask_head", "cls_convs", "conv_cls", "mask_convs", "conv_mask_list")
    + ("conv_cls", "conv_mask_list"),
}


def _make_layouts(source: str) -> list[Layout]:
    head, tower, cate, masks, list_, cate2, list2 = _NAMES[source]
    category: tuple[Row, ...] = (
        *conv_rows(f"{head}.{tower}.{{i}}", "head.cate_branch.tower.{i}"),
        (f"{head}.{cate}.*", "head.cate_branch.predict.*"),
        (f"{head}.{cate2}.*", "head.cate_branch.predict.*"),
    )
    decoupled: tuple[Row, ...] = (
        *category,
        (f"{head}.{list2}_x.{{l}}.*", "head.predict_x.{l}.*"),
        (f"{head}.{list2}_y.{{l}}.*", "head.predict_y.{l}.*"),
    )
    return [
        *make_family(
            source,
            "SOLO",
            _SOLO,
            Signature((f"{head}.{list_}.0.weight",)),
            (
                *category,
                *conv_rows(f"{head}.{masks}.{{i}}", "head.mask_tower.{i}"),
                (f"{head}.{list_}.{{l}}.*", "head.mask_predict.{l}.*"),
            ),
        ),
        *make_family(
            source,
            "Decoupled SOLO",
            _DECOUPLED,
            Signature((f"{head}.{list2}_x.0.weight", f"{head}.{masks}_x.0.conv.weight")),
            (
                *decoupled,
                *conv_rows(f"{head}.{masks}_x.{{i}}", "head.mask_towers.x.{i}"),
                *conv_rows(f"{head}.{masks}_y.{{i}}", "head.mask_towers.y.{i}"),
            ),
        ),
        *make_family(
            source,
            "Decoupled SOLO light",
            _LIGHT,
            Signature((f"{head}.{list2}_x.0.weight", f"{head}.{masks}.0.conv.weight")),
            (*decoupled, *conv_rows(f"{head}.{masks}.{{i}}", "head.mask_towers.xy.{i}")),
        ),
    ]


LAYOUTS = tuple(layout for source in _NAMES for layout in _make_layouts(source))
