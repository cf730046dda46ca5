"""Layouts of published YOLACT and YOLACT++ checkpoints (dbolya/yolact)."""

from __future__ import annotations

from instancezoo.checkpoint.rename import Layout, Row, TrainedOn

LICENCE = "MIT (code, dbolya/yolact; the weights state none)"

_THEIRS, _OURS = "backbone.layers.{s}.{b}", "backbone.bottom_up.res{s+2}.{b}"
_RESNET: tuple[Row, ...] = (
    ("backbone.conv1.weight", "backbone.bottom_up.stem.conv1.weight"),
    ("backbone.bn1.*", "backbone.bottom_up.stem.conv1.norm.*"),
    (f"{_THEIRS}.conv2.conv_offset_mask.*", f"{_OURS}.conv2.offset.*"),
    (f"{_THEIRS}.conv{{c}}.*", f"{_OURS}.conv{{c}}.*"),
    (f"{_THEIRS}.bn{{c}}.*", f"{_OURS}.conv{{c}}.norm.*"),
    (f"{_THEIRS}.downsample.0.weight", f"{_OURS}.shortcut.weight"),
    (f"{_THEIRS}.downsample.1.*", f"{_OURS}.shortcut.norm.*"),
)
_DARKNET: tuple[Row, ...] = tuple(
    (f"{theirs}.{index}.*", f"{ours}.{part}.*")
    for theirs, ours in (
        ("backbone._preconv", "backbone.bottom_up.stem"),
        ("backbone.layers.{s}.0", "backbone.bottom_up.res{s+1}.0"),
        ("backbone.layers.{s}.{b}.conv{c}", "backbone.bottom_up.res{s+1}.{b}.conv{c}"),
    )
    for index, part in enumerate(("conv", "norm"))
)
_HEAD: tuple[Row, ...] = (
    # The lists of the pyramid start with the coarsest level.
    *(
        (f"fpn.{theirs}.{index}.*", f"backbone.{ours}{5 - index}.*")
        for theirs, ours in (("lat_layers", "fpn_lateral"), ("pred_layers", "fpn_output"))
        for index in range(3)
    ),
    ("fpn.downsample_layers.0.*", "backbone.top_block.p6.*"),
    ("fpn.downsample_layers.1.*", "backbone.top_block.p7.*"),
    # Both sides number the layers between the prototypes' convolutions: ReLU, resize.
    *(
        (f"proto_net.{index}.*", f"head.prototypes.{here}.*")
        for index, here in ((0, 0), (2, 2), (4, 4), (8, 7), (10, 9))
    ),
    ("prediction_layers.0.upfeature.0.*", "head.tower.0.*"),
    ("prediction_layers.0.bbox_layer.*", "head.bbox_pred.*"),
    ("prediction_layers.0.conf_layer.*", "head.cls_logits.*"),
    ("prediction_layers.0.mask_layer.*", "head.coefficients.*"),
    ("semantic_seg_conv.*", "head.semantic.*"),
    ("maskiou_net.maskiou_net.{i}.*", "head.mask_iou.convs.{i}.*"),
)
# In files of the first version: duplicates, and levels that were never used.
_UNUSED = (
    "backbone.layer.**",
    "backbone.layer{s}.**",
    *(f"fpn.downsample_layers.{index}.*" for index in range(2, 10)),
)

_HEADS = ("prediction_layers.0.conf_layer.weight", "proto_net.10.weight")
_7TH, _DEFORMABLE = "backbone.layers.2.6.conv1.weight", "**.conv_offset_mask.weight"
_STEM, _DARKNET_STEM = "backbone.conv1.weight", "backbone._preconv.0.weight"
_IOU_NET = "maskiou_net.maskiou_net.0.weight"

# config -> rows of the backbone, what files must have, and must not have
_NETWORKS = {
    "yolact_R_50_FPN_54e": (_RESNET, (_STEM,), (_7TH, _DEFORMABLE, _IOU_NET)),
    "yolact_R_101_FPN_54e": (_RESNET, (_STEM, _7TH), (_DEFORMABLE, _IOU_NET)),
    "yolact_D_53_FPN_54e": (_DARKNET, (_DARKNET_STEM,), (_IOU_NET,)),
    "yolact_plus_R_50_FPN_54e": (_RESNET, (_STEM, _DEFORMABLE, _IOU_NET), (_7TH,)),
    "yolact_plus_R_101_FPN_54e": (_RESNET, (_STEM, _7TH, _DEFORMABLE, _IOU_NET), ()),
}

LAYOUTS = tuple(
    Layout(
        name=f"dbolya/yolact {config}",
        method="YOLACT",
        config=f"yolact/{config}",
        licence=LICENCE,
        rows=(*rows, *_HEAD),
        unused=_UNUSED,
        must=(*_HEADS, *must),
        must_not=must_not,
        trained_on=TrainedOn.coco("semantic_seg_conv.bias"),
    )
    for config, (rows, must, must_not) in _NETWORKS.items()
)
