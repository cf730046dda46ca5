"""Layouts of published FCOS checkpoints (AdelaiDet, and the original FCOS repository)."""

from __future__ import annotations

from instancezoo.checkpoint.layouts import resnet_rows
from instancezoo.checkpoint.rename import Layout, Row, TrainedOn

ADELAIDET_LICENCE = "2-clause BSD for non-commercial purposes (AdelaiDet)"
ORIGINAL_LICENCE = "2-clause BSD for academic use (tianzhi0549/FCOS)"
HEAD = "proposal_generator.fcos_head"
# In older files.
UNUSED = ("pixel_mean", "pixel_std")

# AdelaiDet's FCOS, alone or as a part of its other methods.
ADELAIDET_ROWS: tuple[Row, ...] = (
    (
        "backbone.bottom_up.res{s}.{b}.conv2_offset.*",
        "backbone.bottom_up.res{s}.{b}.conv2.offset.*",
    ),
    ("backbone.**", "backbone.**"),
    (f"{HEAD}.centerness.*", f"{HEAD}.ctrness.*"),  # early files
    # The weights of a deformable convolution are those of a part of it.
    (f"{HEAD}.*_tower.{{i}}.conv.*", f"{HEAD}.*_tower.{{i}}.*"),
    (f"{HEAD}.**", f"{HEAD}.**"),
)
# Parts of other methods built on FCOS.
_OTHER_METHODS = ("roi_heads.**", "basis_module.**", "top_layer.**", "controller.**", "mask_**")

_BLOCK, _RES2 = "backbone.bottom_up.res4.6.conv1.weight", "backbone.bottom_up.res2.0.conv2.weight"
_DCN, _P6 = "backbone.bottom_up.res3.0.conv2_offset.weight", "backbone.top_block.p6.weight"
_LEVEL_NORM = f"{HEAD}.cls_tower.1.0.weight"
# The shape of res2 distinguishes ResNet, X-101-32x8d and X-101-64x4d.
_RESNET, _RESNEXT = {_RES2: (64, 64, 3, 3)}, {_RES2: (256, 8, 3, 3)}

# config -> what files must have, what they must not have, and shapes
_NETWORKS = {
    "R_50_FPN_1x": ((_P6,), (_BLOCK, _DCN), _RESNET),
    "R_101_FPN_2x": ((_P6, _BLOCK), (_DCN,), _RESNET),
    "X_101_32x8d_FPN_2x": ((_P6, _BLOCK), (_DCN,), _RESNEXT),
    "X_101_32x8d_DCN_FPN_2x": ((_P6, _BLOCK, _DCN), (), _RESNEXT),
    "RT_R_50_FPN_4x": ((), (_P6, _BLOCK, _DCN, _LEVEL_NORM), _RESNET),
    "RT_R_50_FPN_4x_bn_head": ((_LEVEL_NORM,), (_P6, _BLOCK, _DCN), _RESNET),
}

_ADELAIDET_LAYOUTS = tuple(
    Layout(
        name=f"AdelaiDet FCOS {name}",
        method="FCOS",
        config=f"fcos/fcos_{name}",
        licence=ADELAIDET_LICENCE,
        rows=ADELAIDET_ROWS,
        unused=UNUSED,
        must=(f"{HEAD}.cls_logits.weight", "backbone.fpn_lateral3.weight", *must),
        must_not=(*must_not, *_OTHER_METHODS),
        shapes=shapes,
        trained_on=TrainedOn.coco(f"{HEAD}.cls_logits.bias"),
    )
    for name, (must, must_not, shapes) in _NETWORKS.items()
)


def original_rows(prefix: str) -> tuple[Row, ...]:
    """Rows of the original repository, which is based on maskrcnn-benchmark.

    Only its improved models compute the same function: distances in strides after a ReLU,
    centerness on the box tower. Older models have the same names.

    Args:
        prefix: start of every name.
    """
    body, fpn, head = f"{prefix}backbone.body", f"{prefix}backbone.fpn", f"{prefix}rpn.head"
    return (
        (f"{body}.stem.conv1.weight", "backbone.bottom_up.stem.conv1.weight"),
        (f"{body}.stem.bn1.*", "backbone.bottom_up.stem.conv1.norm.*"),
        *resnet_rows(f"{body}."),
        (f"{fpn}.fpn_inner{{n}}.*", "backbone.fpn_lateral{n+1}.*"),
        (f"{fpn}.fpn_layer{{n}}.*", "backbone.fpn_output{n+1}.*"),
        (f"{fpn}.top_blocks.**", "backbone.top_block.**"),
        (f"{head}.centerness.*", f"{HEAD}.ctrness.*"),
        (f"{head}.**", f"{HEAD}.**"),
    )


_7TH, _BODY = "**backbone.body.layer3.6.conv1.weight", "**backbone.body.layer1.0.conv2.weight"

_ORIGINAL_LAYOUTS = tuple(
    Layout(
        name=f"tianzhi0549/FCOS {name}",
        method="FCOS",
        config=f"fcos/fcos_{name}",
        licence=ORIGINAL_LICENCE,
        rows=(*original_rows(""), *original_rows("module.")),
        must=("**rpn.head.cls_logits.weight", "**rpn.head.bbox_tower.0.weight", *must),
        must_not=must_not,
        shapes=shapes,
        trained_on=TrainedOn.coco("**rpn.head.cls_logits.bias"),
    )
    for name, must, must_not, shapes in (
        ("R_50_FPN_1x", (), (_7TH,), {_BODY: (64, 64, 3, 3)}),
        ("R_101_FPN_2x", (_7TH,), (), {_BODY: (64, 64, 3, 3)}),
        ("X_101_32x8d_FPN_2x", (_7TH,), (), {_BODY: (256, 8, 3, 3)}),
    )
)

LAYOUTS = (*_ADELAIDET_LAYOUTS, *_ORIGINAL_LAYOUTS)
