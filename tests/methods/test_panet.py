"""PANet's bottom-up path and heads, against slow versions: one level and one region at a time."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import roi_align

from instancezoo.errors import ConfigError
from instancezoo.panet.head import FullyConnected, PANetConvFCHead, PANetFusionMaskHead
from instancezoo.panet.roi_heads import LevelPooler, PANetROIHeads
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input

TINY, LEGACY = "panet/panet_tiny", "panet/panet_legacy_tiny"
STRIDES, CHANNELS, SIDE = [4, 8, 16, 32], 32, 7
BOXES = [
    torch.tensor([[8.0, 9, 70, 60], [0, 0, 128, 96], [90, 2, 91, 95]]),
    torch.tensor([[20.0, 20, 25, 24]]),
]


def _randomise(module):
    """Weights, scales and shifts that make a difference, in double: sums are large."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
    return module.eval().double()


def _make_maps():
    generator = torch.Generator().manual_seed(0)
    sizes = [(96 // stride, 128 // stride) for stride in STRIDES]
    return [torch.randn(2, CHANNELS, *size, generator=generator) for size in sizes]


def _norm(block, features):
    return F.group_norm(features, 32, block.norm.weight, block.norm.bias, eps=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["GN", ""])
def test_the_path_passes_fine_maps_to_coarse_ones(norm):
    backbone = _randomise(build_backbone(get_tiny_config(TINY, ["MODEL.FPN.NORM", norm])))
    images = torch.randn(2, 3, 64, 96).double()
    laterals = super(type(backbone), backbone).forward(images)  # the FPN alone
    maps = backbone(images)
    assert list(maps) == list(backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 32, 64]
    expected = laterals["p2"]
    torch.testing.assert_close(maps["p2"], expected)
    for index, name in enumerate(("p3", "p4", "p5")):
        down, output = backbone.path_down[index], backbone.path_output[index]
        finer = F.conv2d(expected, down.weight, down.bias, stride=2, padding=1)
        fused = (_norm(down, finer) if norm else finer).relu() + laterals[name]
        fused = F.conv2d(fused, output.weight, output.bias, padding=1)
        expected = (_norm(output, fused) if norm else fused).relu()
        torch.testing.assert_close(maps[name], expected)
    assert torch.equal(maps["p6"], maps["p5"][:, :, ::2, ::2])


def test_the_path_keeps_the_names_of_an_fpns_weights():
    ours = build_backbone(get_tiny_config(TINY)).state_dict().keys()
    plain = get_tiny_config(TINY, ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"])
    added = ours - build_backbone(plain).state_dict().keys()
    assert len(added) < len(ours) and all(name.startswith("path_") for name in added)


def test_a_one_stage_method_on_the_path():
    path = ["MODEL.BACKBONE.NAME", "build_resnet_panet_fpn_backbone"]
    cfg = get_tiny_config("fcos/fcos_tiny", [*path, "MODEL.PANET.TOP_BLOCK", "convs"])
    model = build_seeded_model(cfg)
    assert list(model.backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    with EventStorage():
        losses = model([make_input(128, 128, [[10, 12, 60, 70]])])
    sum(losses.values()).backward()
    weights = dict(model.backbone.named_parameters())
    names = ("path_down.0.weight", "path_top.p6.weight")
    assert all(weights[name].grad.abs().sum() > 0 for name in names)


def test_the_path_reads_where_the_pyramid_has_relus():
    path = ["MODEL.BACKBONE.NAME", "build_resnet_panet_fpn_backbone"]
    path += ["MODEL.PANET.TOP_BLOCK", "convs", "MODEL.FPN.TOP_LEVELS", 2]
    images = torch.randn(1, 3, 128, 128)
    plain = _randomise(build_backbone(get_tiny_config(TINY, path)))
    maps = plain(images.double())
    assert (maps["p2"] < 0).any()
    assert torch.equal(maps["p7"], plain.path_top.p7(maps["p6"].relu()))
    relus = ["MODEL.FPN.OUTPUT_RELU", True, "MODEL.FPN.TOP_RELU", False]
    other = _randomise(build_backbone(get_tiny_config(TINY, [*path, *relus])))
    maps = other(images.double())
    assert (maps["p2"] >= 0).all() and (maps["p2"] > 0).any()
    assert torch.equal(maps["p7"], other.path_top.p7(maps["p6"]))


def test_the_path_on_a_mask_rcnn_with_a_timm_network():
    names = ["MODEL.BACKBONE.NAME", "build_timm_panet_fpn_backbone"]
    cfg = get_tiny_config("mask_rcnn/mask_rcnn_tiny", [*names, "MODEL.TIMM.NAME", "resnet18"])
    model = build_seeded_model(cfg)
    assert len(model.backbone.path_down) == 3
    with EventStorage():
        losses = model([make_input(96, 128, [[10, 12, 60, 70]])])
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("inclusive", [False, True])
def test_every_region_is_pooled_from_every_level(inclusive):
    maps = _make_maps()
    pooler = LevelPooler(
        side=SIDE, strides=STRIDES, sampling_ratio=2, aligned=not inclusive, inclusive=inclusive
    )
    pooled = pooler(maps, [Boxes(boxes) for boxes in BOXES])
    assert [level.shape for level in pooled] == [(4, CHANNELS, SIDE, SIDE)] * 4
    for features, stride, level in zip(maps, STRIDES, pooled, strict=True):
        row = 0
        for image, boxes in enumerate(BOXES):
            for x0, y0, x1, y1 in boxes.tolist():
                region = torch.tensor([[0.0, x0, y0, x1 - inclusive, y1 - inclusive]])
                one = features[image : image + 1]
                expected = roi_align(one, region, SIDE, 1 / stride, 2, aligned=not inclusive)
                torch.testing.assert_close(level[row], expected[0])
                row += 1
    empty = pooler(maps, [Boxes(torch.zeros(0, 4))] * 2)
    assert [level.shape for level in empty] == [(0, CHANNELS, SIDE, SIDE)] * 4


def _make_levels(count=3, side=SIDE):
    generator = torch.Generator().manual_seed(1)
    sizes = (len(STRIDES), count, CHANNELS, side, side)
    return list(torch.randn(sizes, generator=generator).double())


def _build_box_head(**overrides):
    numbers = {"num_conv": 2, "conv_dim": 64, "num_fc": 1, "fc_dim": 96, "norm": "GN"} | overrides
    shape = ShapeSpec(channels=CHANNELS, height=SIDE, width=SIDE)
    return _randomise(PANetConvFCHead(shape, num_levels=len(STRIDES), **numbers))


@torch.no_grad()
@pytest.mark.parametrize("fuse", ["max", "sum"])
def test_box_head_of_convolutions(fuse):
    head, levels = _build_box_head(fuse=fuse), _make_levels()
    found = head(levels)
    assert head.output_shape == ShapeSpec(channels=96) and found.shape == (3, 96)
    for row in range(3):
        per_level = [
            _norm(conv, F.conv2d(level[row : row + 1], conv.weight, padding=1)).relu()
            for conv, level in zip(head.conv1, levels, strict=True)
        ]
        stack = torch.stack(per_level)
        fused = stack.amax(dim=0) if fuse == "max" else stack.sum(dim=0)
        assert head.conv2.bias is None
        shared = _norm(head.conv2, F.conv2d(fused, head.conv2.weight, padding=1)).relu()
        expected = F.linear(shared.flatten(1), head.fc1.weight, head.fc1.bias).relu()
        torch.testing.assert_close(found[row : row + 1], expected)


@torch.no_grad()
def test_box_head_of_fully_connected_layers_has_norms():
    head, levels = _build_box_head(num_conv=0, num_fc=2), _make_levels()
    expected = torch.stack(
        [
            _norm(fc, F.linear(level.flatten(1), fc.weight, fc.bias)).relu()
            for fc, level in zip(head.fc1, levels, strict=True)
        ]
    ).amax(dim=0)
    expected = _norm(head.fc2, F.linear(expected, head.fc2.weight, head.fc2.bias)).relu()
    torch.testing.assert_close(head(levels), expected)


def test_box_head_without_fully_connected_layers_keeps_maps():
    head = _build_box_head(num_fc=0)
    assert head.output_shape == ShapeSpec(channels=64, height=SIDE, width=SIDE)
    assert head(_make_levels()).shape == (3, 64, SIDE, SIDE)


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_a_norm_after_a_fully_connected_layer_reads_rows(norm):
    layer = FullyConnected(8, 64, norm).train()
    assert layer(torch.randn(5, 2, 2, 2)).shape == (5, 64)


def _build_mask_head(**overrides):
    numbers = {"num_classes": 5, "num_conv": 3, "conv_dim": 64, "norm": "GN"} | overrides
    shape = ShapeSpec(channels=CHANNELS, height=SIDE, width=SIDE)
    return _randomise(PANetFusionMaskHead(shape, num_levels=len(STRIDES), **numbers))


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [5, 1])
def test_masks_of_classes_and_one_for_all_are_added(num_classes):
    head, levels = _build_mask_head(num_classes=num_classes), _make_levels()
    logits = head.layers(levels)
    assert logits.shape == (3, num_classes, 2 * SIDE, 2 * SIDE)
    shared = torch.stack(
        [
            _norm(conv, F.conv2d(level, conv.weight, padding=1)).relu()
            for conv, level in zip(head.fusion, levels, strict=True)
        ]
    ).amax(dim=0)
    for conv in head.shared:
        shared = _norm(conv, F.conv2d(shared, conv.weight, padding=1)).relu()
    x = _norm(head.conv, F.conv2d(shared, head.conv.weight, padding=1)).relu()
    x = F.conv_transpose2d(x, head.deconv.weight, head.deconv.bias, stride=2).relu()
    fcn = F.conv2d(x, head.predictor.weight, head.predictor.bias)
    first, second, _, fc, *_ = head.fc_branch
    y = _norm(first, F.conv2d(shared, first.weight, padding=1)).relu()
    y = _norm(second, F.conv2d(y, second.weight, padding=1)).relu()
    assert y.shape[1] == 32
    y = F.linear(y.flatten(1), fc.weight, fc.bias).relu()
    assert (y == 0).any() and (y > 0).any()
    torch.testing.assert_close(logits, fcn + y.view(3, 1, 2 * SIDE, 2 * SIDE))


def test_fully_connected_fusion_can_be_switched_off():
    head = _build_mask_head(fc_fusion=False)
    assert not any("fc" in name for name in head.state_dict())
    assert head.layers(_make_levels()).shape == (3, 5, 2 * SIDE, 2 * SIDE)


def test_heads_of_other_kinds():
    """What the config switches, through a training step of the whole model."""
    options = ["MODEL.PANET.FUSE", "sum", "MODEL.PANET.FC_FUSION", False]
    options += ["MODEL.ROI_BOX_HEAD.NUM_CONV", 0, "MODEL.ROI_BOX_HEAD.NUM_FC", 2]
    options += ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True]
    model = build_seeded_model(get_tiny_config(TINY, options))
    with EventStorage():
        losses = model([make_input(96, 128, [[10, 12, 60, 70]])])
    sum(losses.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert model.roi_heads.mask_head.predictor.out_channels == 1


def test_given_boxes_get_masks():
    model = build_seeded_model(get_tiny_config(TINY)).eval()
    assert isinstance(model.roi_heads, PANetROIHeads)
    given = Instances((96, 128), pred_boxes=Boxes(BOXES[0]), pred_classes=torch.tensor([0, 1, 3]))
    with torch.no_grad():
        (found,) = model.inference([make_input(96, 128, [])], [given], do_postprocess=False)
    assert found.pred_masks.shape == (3, 1, 28, 28)


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("PANET.FUSE", "mean", "max, sum"),
        ("PANET.TOP_BLOCK", "conv", "pool, convs"),
        ("FPN.UPSAMPLING", "bilinear", "nearest"),
        ("FPN.OUT_CHANNELS", 48, "GN.*32"),
        ("ROI_HEADS.NAME", "StandardROIHeads", "PANetROIHeads"),
        ("ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "PANetConvFCHead"),
        ("ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "PANetFusionMaskHead"),
        ("ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "ROIAlignV2"),
        ("ROI_MASK_HEAD.POOLER_TYPE", "", "ROIAlignV2"),
        ("ROI_BOX_HEAD.CONV_DIM", 48, "GN.*32"),
        ("ROI_MASK_HEAD.CONV_DIM", 32, "is 16.*GN.*32"),
        ("ROI_MASK_HEAD.NUM_CONV", 1, "2 and 100"),
    ],
)
def test_value_is_refused_with_its_key(key, value, named):
    with pytest.raises(ConfigError, match=rf"MODEL\.{key}\b.*{named}"):
        build_model(get_tiny_config(TINY, [f"MODEL.{key}", value]))


@pytest.mark.parametrize(
    "key,value",
    [
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
        ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
        ("INPUT.CROP.ENABLED", True),
    ],
)
def test_legacy_boxes_refuse_what_they_do_not_reach(key, value):
    build_model(get_tiny_config(TINY, [key, value]))
    rest = ["MODEL.RPN.DISCARD_BEFORE_MATCHING", False]  # which refuses "RPN", too
    with pytest.raises(ConfigError, match=rf"{key}\b.*LEGACY_BOXES"):
        build_model(get_tiny_config(LEGACY, [key, value, *rest]))


@pytest.mark.parametrize("head", ["ROI_BOX_HEAD", "ROI_MASK_HEAD"])
def test_legacy_boxes_are_not_pooled_with_a_shift(head):
    key = f"MODEL.{head}.POOLER_TYPE"
    with pytest.raises(ConfigError, match=rf"{key} is 'ROIAlignV2'.*LEGACY_BOXES.*'ROIAlign'"):
        build_model(get_tiny_config(LEGACY, [key, "ROIAlignV2"]))


def test_legacy_proposals_need_heads_of_their_kind():
    names = ["MODEL.PROPOSAL_GENERATOR.NAME", "PANetRPN", "MODEL.PANET.LEGACY_BOXES", True]
    with pytest.raises(ConfigError, match=r"MODEL\.ROI_HEADS\.NAME.*'PANetROIHeads'"):
        build_model(get_tiny_config("mask_rcnn/mask_rcnn_tiny", names))


def test_a_box_head_needs_a_layer():
    none = ["MODEL.ROI_BOX_HEAD.NUM_CONV", 0, "MODEL.ROI_BOX_HEAD.NUM_FC", 0]
    with pytest.raises(ConfigError, match=r"ROI_BOX_HEAD\.NUM_CONV.*NUM_FC"):
        build_model(get_tiny_config(TINY, none))
