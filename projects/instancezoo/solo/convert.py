"""Layouts of published SOLO and Decoupled SOLO checkpoints (WXinlong/SOLO and MMDetection 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from instancezoo.checkpoint import Layout, register_layout
from instancezoo.checkpoint.layouts import resnet_rows
from instancezoo.checkpoint.rename import Row

SOLO_LICENCE = "2-clause BSD for non-commercial purposes (WXinlong/SOLO)"
MMDET_LICENCE = "Apache-2.0 (MMDetection)"
# Frozen norms have no counter, and other norms do not need theirs.
UNUSED = ("**.num_batches_tracked",)

_BLOCK, _OURS = "backbone.layer{s}.{b}", "backbone.bottom_up.res{s+1}.{b}"
# Backbone and neck have the same names in WXinlong/SOLO and in MMDetection.
PYRAMID_ROWS: tuple[Row, ...] = (
    # older files spell the second form
    (f"{_BLOCK}.conv2.conv_offset.*", f"{_OURS}.conv2.offset.*"),
    (f"{_BLOCK}.conv2_offset.*", f"{_OURS}.conv2.offset.*"),
    *resnet_rows("backbone."),
    ("neck.lateral_convs.{n}.conv.*", "backbone.fpn_lateral{n+2}.*"),
    ("neck.fpn_convs.{n}.conv.*", "backbone.fpn_output{n+2}.*"),
)

_BOTTLENECK, _DCN = "backbone.layer1.0.conv3.weight", "backbone.layer2.0.conv2.**offset.weight"
_3RD_BLOCK, _7TH_BLOCK = "backbone.layer1.2.conv1.weight", "backbone.layer3.6.conv1.weight"
_WIDTH = "backbone.layer1.0.conv1.weight"


@dataclass(frozen=True)
class Signature:
    """What tells one network from its kin, see `Layout`."""

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    def __add__(self, other: Signature) -> Signature:
        return Signature(
            self.must + other.must,
            self.must_not + other.must_not,
            {**self.shapes, **other.shapes},
        )


BACKBONES = {
    "R_18": Signature(must_not=(_BOTTLENECK, _3RD_BLOCK)),
    "R_34": Signature((_3RD_BLOCK,), (_BOTTLENECK,)),
    "R_50": Signature((_BOTTLENECK,), (_7TH_BLOCK, _DCN)),
    "R_50_DCN": Signature((_BOTTLENECK, _DCN), (_7TH_BLOCK,)),
    "R_101": Signature((_7TH_BLOCK,), (_DCN,), {_WIDTH: (64, None, None, None)}),
    "R_101_DCN": Signature((_7TH_BLOCK, _DCN), (), {_WIDTH: (64, None, None, None)}),
    "X_101_64x4d_DCN": Signature((_7TH_BLOCK, _DCN), (), {_WIDTH: (256, None, None, None)}),
}


def conv_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Rows of a convolution, plain or deformable, with its group norm."""
    return (
        (f"{theirs}.conv.conv_offset.*", f"{ours}.offset.*"),
        (f"{theirs}.conv.weight", f"{ours}.weight"),
        (f"{theirs}.gn.*", f"{ours}.norm.*"),
    )


def register_family(
    source: str, method: str, configs: dict[str, str], head: Signature, rows: tuple[Row, ...]
) -> None:
    """Register one layout per backbone.

    Args:
        source: "WXinlong/SOLO" or "MMDetection".
        method: name of the method, as in the README's table.
        configs: key of `BACKBONES` -> config.
        head: signature of the head.
        rows: of the head.
    """
    for backbone, config in configs.items():
        signature = BACKBONES[backbone] + head
        register_layout(
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

for _source, (_head, _tower, _cate, _masks, _list, _cate2, _list2) in _NAMES.items():
    _category: tuple[Row, ...] = (
        *conv_rows(f"{_head}.{_tower}.{{i}}", "head.cate_branch.tower.{i}"),
        (f"{_head}.{_cate}.*", "head.cate_branch.predict.*"),
        (f"{_head}.{_cate2}.*", "head.cate_branch.predict.*"),
    )
    register_family(
        _source,
        "SOLO",
        _SOLO,
        Signature((f"{_head}.{_list}.0.weight",)),
        (
            *_category,
            *conv_rows(f"{_head}.{_masks}.{{i}}", "head.mask_tower.{i}"),
            (f"{_head}.{_list}.{{l}}.*", "head.mask_predict.{l}.*"),
        ),
    )
    _predictions: tuple[Row, ...] = (
        *_category,
        (f"{_head}.{_list2}_x.{{l}}.*", "head.predict_x.{l}.*"),
        (f"{_head}.{_list2}_y.{{l}}.*", "head.predict_y.{l}.*"),
    )
    register_family(
        _source,
        "Decoupled SOLO",
        _DECOUPLED,
        Signature((f"{_head}.{_list2}_x.0.weight", f"{_head}.{_masks}_x.0.conv.weight")),
        (
            *_predictions,
            *conv_rows(f"{_head}.{_masks}_x.{{i}}", "head.mask_towers.x.{i}"),
            *conv_rows(f"{_head}.{_masks}_y.{{i}}", "head.mask_towers.y.{i}"),
        ),
    )
    register_family(
        _source,
        "Decoupled SOLO light",
        _LIGHT,
        Signature((f"{_head}.{_list2}_x.0.weight", f"{_head}.{_masks}.0.conv.weight")),
        (*_predictions, *conv_rows(f"{_head}.{_masks}.{{i}}", "head.mask_towers.xy.{i}")),
    )
