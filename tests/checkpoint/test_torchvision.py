"""torchvision's Mask R-CNN and ours give the same raw outputs after conversion."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection.image_list import ImageList

from instancezoo.checkpoint import ZooCheckpointer, convert_state_dict
from instancezoo.mask_rcnn.convert import TORCHVISION_MASK_RCNN_2019


@pytest.fixture(scope="module")
def theirs(torchvision_model: nn.Module) -> nn.Module:
    return torchvision_model


@pytest.fixture(scope="module")
def ours(torchvision_file: Path, make_cfg) -> nn.Module:
    model = build_model(make_torchvision_cfg(make_cfg)).eval()
    ZooCheckpointer(model).load(str(torchvision_file))
    return model


def make_torchvision_cfg(make_cfg, **options) -> CfgNode:
    return make_cfg("mask_rcnn/mask_rcnn_R_50_FPN_torchvision", **options)


def assert_same(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@torch.no_grad()
def test_raw_outputs(theirs: nn.Module, ours: nn.Module) -> None:
    images = torch.randn(2, 3, 96, 128)
    their_maps = list(theirs.backbone(images).values())
    our_maps = list(ours.backbone(images).values())
    assert len(our_maps) == len(their_maps) == 5
    for got, wanted in zip(our_maps, their_maps, strict=True):
        assert_same(got, wanted)

    their_logits, their_deltas = theirs.rpn.head(their_maps)
    our_logits, our_deltas = ours.proposal_generator.rpn_head(their_maps)
    for got, wanted in zip(our_logits + our_deltas, their_logits + their_deltas, strict=True):
        assert_same(got, wanted)

    regions = torch.randn(5, 256, 7, 7)
    logits, deltas = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(regions))
    our_scores, our_boxes = ours.roi_heads.box_predictor(ours.roi_heads.box_head(regions))
    assert_same(our_scores, torch.cat([logits[:, 1:], logits[:, :1]], dim=1))
    assert_same(our_boxes, deltas[:, 4:])

    regions = torch.randn(3, 256, 14, 14)
    masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(regions))
    assert_same(ours.roi_heads.mask_head.layers(regions), masks[:, 1:])


@pytest.mark.parametrize("size", [(96, 128), (800, 1344), (224, 160)])
def test_anchors(theirs: nn.Module, ours: nn.Module, size: tuple[int, int]) -> None:
    height, width = size
    maps = [torch.zeros(1, 1, height >> level, width >> level) for level in range(2, 6)]
    maps.append(maps[-1][..., ::2, ::2])
    images = ImageList(torch.zeros(1, 3, height, width), [size])
    (wanted,) = theirs.rpn.anchor_generator(images, maps)
    got = ours.proposal_generator.anchor_generator(maps)
    assert torch.equal(torch.cat([boxes.tensor for boxes in got]), wanted)


@torch.no_grad()
def test_detections(theirs: nn.Module, ours: nn.Module) -> None:
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    theirs.transform.min_size, theirs.transform.max_size = (96,), 128
    theirs.roi_heads.score_thresh = ours.roi_heads.box_predictor.test_score_thresh
    (wanted,) = theirs([image])
    (got,) = ours([{"image": image * 255, "height": 96, "width": 128}])
    found = got["instances"]
    assert len(found) == len(wanted["scores"]) > 20
    assert_same(found.scores, wanted["scores"])
    assert torch.equal(found.pred_classes + 1, wanted["labels"])
    assert (found.pred_boxes.tensor - wanted["boxes"]).abs().max() < 0.01


def test_coco_models_keep_the_80_categories(theirs: nn.Module) -> None:
    state = dict(theirs.state_dict())
    for key in list(state):
        if "box_predictor" in key or "mask_fcn_logits" in key:
            rows = 91 * (4 if "bbox_pred" in key else 1)
            shape = (rows, *state[key].shape[1:])
            state[key] = torch.arange(rows).float().reshape(-1, *[1] * (len(shape) - 1))
            state[key] = state[key].expand(shape)
    ours = convert_state_dict(state).state
    kept = ours["roi_heads.box_predictor.cls_score.bias"].tolist()
    assert len(kept) == 81 and kept[-1] == 0 and kept[:12] == [*range(1, 12), 13]
    assert ours["roi_heads.mask_head.predictor.bias"].tolist() == kept[:-1]
    boxes = ours["roi_heads.box_predictor.bbox_pred.bias"].reshape(80, 4)
    assert (boxes[:, 0] / 4).tolist() == kept[:-1]


def to_2019_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        if "_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        name = name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        for i in range(4):
            name = name.replace(
                f"roi_heads.mask_head.{i}.0", f"roi_heads.mask_head.mask_fcn{i + 1}"
            )
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def test_file_of_2019_is_a_network_without_epsilon(theirs: nn.Module, make_cfg) -> None:
    converted = convert_state_dict(to_2019_names(theirs.state_dict()))
    assert converted.layout is TORCHVISION_MASK_RCNN_2019
    model = build_model(make_torchvision_cfg(make_cfg)).eval()
    found = model.load_state_dict(converted.state, strict=False)
    assert not found.unexpected_keys and set(found.missing_keys) <= {"pixel_mean", "pixel_std"}
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    images = torch.randn(1, 3, 64, 64)
    for norm in norms:
        norm.eps = 0.0
    try:
        wanted = theirs.backbone(images)["0"]
    finally:
        for norm in norms:
            norm.eps = 1e-5
    assert_same(model.backbone(images)["p2"], wanted)


def test_class_count_is_named(torchvision_file: Path, make_cfg) -> None:
    model = build_model(make_torchvision_cfg(make_cfg, num_classes=3))
    with pytest.raises(ValueError, match=r"\b7\b.*\b3\b") as error:
        ZooCheckpointer(model).load(str(torchvision_file))
    assert "mask_rcnn/mask_rcnn_R_50_FPN_torchvision" in str(error.value)


@torch.no_grad()
def test_imagenet_backbone(ours: nn.Module, make_cfg, tmp_path: Path) -> None:
    source = resnet50(weights=None).eval()
    path = tmp_path / "resnet50.pth"
    torch.save(source.state_dict(), path)
    head_before = ours.roi_heads.box_predictor.cls_score.weight.clone()
    model = build_model(make_torchvision_cfg(make_cfg)).eval()
    model.load_state_dict(ours.state_dict(), strict=False)
    ZooCheckpointer(model).load(str(path))  # strict, and yet the heads may stay as they are
    images = torch.randn(1, 3, 64, 64)
    wanted = source.layer1(source.maxpool(source.relu(source.bn1(source.conv1(images)))))
    assert_same(model.backbone.bottom_up(images)["res2"], wanted)
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, head_before)
