"""Published layouts of the SOLO family: every config's model can be filled from every source.

Fixtures prove the values for R-50; here names are written as the specification's tables say.
"""

import re

import pytest
import torch
from detectron2.modeling import build_model
from published_names import (
    add_counters,
    describe_model,
    list_mmdetection_rows,
    list_shapes,
    rename,
)

from instancezoo import model_zoo, solo, solov2
from instancezoo.checkpoint import CheckpointError, ZooCheckpointer, convert_state_dict

SOURCES = ("WXinlong/SOLO", "MMDetection", "AdelaiDet")
LAYOUTS = {layout.name: layout for module in (solo, solov2) for layout in module.METHOD.layouts}

_RESNET = [
    *list_mmdetection_rows(finest=2),
    (r"^(backbone.layer.*)\.conv2\.offset", r"\1.conv2.conv_offset"),
]
_WXINLONG = {
    "SOLO": [
        (r"head\.cate_branch\.tower", "bbox_head.cate_convs"),
        (r"head\.cate_branch\.predict", "bbox_head.solo_cate"),
        (r"head\.mask_tower", "bbox_head.ins_convs"),
        (r"head\.mask_predict", "bbox_head.solo_ins_list"),
    ],
    "DecoupledSOLO": [
        (r"head\.cate_branch\.tower", "bbox_head.cate_convs"),
        (r"head\.cate_branch\.predict", "bbox_head.dsolo_cate"),
        (r"head\.mask_towers\.xy", "bbox_head.ins_convs"),
        (r"head\.mask_towers\.([xy])", r"bbox_head.ins_convs_\1"),
        (r"head\.predict_([xy])", r"bbox_head.dsolo_ins_list_\1"),
    ],
    "SOLOv2": [
        (r"head\.cate_tower", "bbox_head.cate_convs"),
        (r"head\.kernel_tower", "bbox_head.kernel_convs"),
        (r"head\.cate_predict", "bbox_head.solo_cate"),
        (r"head\.kernel_predict", "bbox_head.solo_kernel"),
        (r"head\.mask_branch\.predict", "mask_feat_head.conv_pred.0"),
        (
            r"head\.mask_branch\.levels\.(\d)\.(\d)",
            r"mask_feat_head.convs_all_levels.\1.conv\2",
        ),
    ],
}
# A convolution with its norm, whose parts have names of their own.
_BLOCK = re.compile(
    r"(bbox_head\.\w+_convs(?:_[xy])?\.\d+|bbox_head\.ins_convs\.\d+|mask_feat_head\.conv_pred\.0"
    r"|mask_feat_head\.convs_all_levels\.\d\.conv\d)\.(.*)"
)
_MMDET = [
    (r"mask_feat_head\.conv_pred\.0", "mask_head.mask_feature_head.conv_pred"),
    (r"mask_feat_head", "mask_head.mask_feature_head"),
    (r"bbox_head\.cate_convs", "mask_head.cls_convs"),
    (r"bbox_head\.(solo|dsolo)_cate", "mask_head.conv_cls"),
    (r"bbox_head\.solo_kernel", "mask_head.conv_kernel"),
    (r"bbox_head\.(solo|dsolo)_ins_list", "mask_head.conv_mask_list"),
    (r"bbox_head\.ins_convs", "mask_head.mask_convs"),
    (r"bbox_head", "mask_head"),
]


def _publish(name, method, source):
    """What `source` calls our tensor `name`."""
    if source == "AdelaiDet":
        return _publish_as_adelaidet(name)
    name = rename(name, _RESNET + _WXINLONG[method])
    block = _BLOCK.fullmatch(name)
    if block:
        parts = block[2].replace("norm.", "gn.").replace("offset.", "conv.conv_offset.")
        name = f"{block[1]}.{'conv.weight' if parts == 'weight' else parts}"
    return rename(name, _MMDET) if source == "MMDetection" else name


def _publish_as_adelaidet(name):
    tower = re.fullmatch(r"head\.(cate_tower|kernel_tower)\.(\d)\.(norm\.)?(\w+)", name)
    if tower:
        return f"ins_head.{tower[1]}.{3 * int(tower[2]) + bool(tower[3])}.{tower[4]}"
    block = re.fullmatch(r"head\.mask_branch\.(?:levels\.(\d)\.(\d)|predict)\.(norm\.)?(\w+)", name)
    if block:
        place = f"convs_all_levels.{block[1]}.conv{block[2]}" if block[1] else "conv_pred"
        return f"mask_head.{place}.{int(bool(block[3]))}.{block[4]}"
    return re.sub(r"^head\.(\w+)_predict", r"ins_head.\1_pred", name)


def _describe_model(config):
    """Method and tensors (without values) of a config's model."""
    cfg, state = describe_model(config)
    return cfg.MODEL.META_ARCHITECTURE, state


def _make_file(method, state, source):
    published = {_publish(name, method, source): tensor for name, tensor in state.items()}
    assert len(published) == len(state)
    return published if source == "AdelaiDet" else add_counters(published)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_recognised_and_fills_its_config(name):
    layout = LAYOUTS[name]
    method, ours = _describe_model(layout.config)
    source = next(source for source in SOURCES if name.startswith(source))
    published = _make_file(method, ours, source)
    converted = convert_state_dict(published)
    assert converted.layout is layout
    assert len(layout.find_classes(published).names) == 80
    assert list_shapes(converted.state) == list_shapes(ours)
    assert all(key.endswith("num_batches_tracked") for key in converted.unused)


def test_every_config_of_the_papers_has_a_layout():
    configs = {
        name
        for name in model_zoo.list_configs()
        if name.startswith(("solo/", "solov2/")) and not name.endswith(("_tiny", "_nuclei", "_1x"))
    }
    assert configs <= {LAYOUTS[name].config for name in LAYOUTS}


@pytest.mark.parametrize(
    "config,source,count",
    [
        ("solo/solo_R_50_FPN_3x", "WXinlong/SOLO", 388),
        ("solo/decoupled_solo_R_50_FPN_3x", "WXinlong/SOLO", 419),
        ("solo/decoupled_solo_light_R_50_FPN_3x", "WXinlong/SOLO", 380),
        ("solov2/solov2_R_50_FPN_3x", "WXinlong/SOLO", 386),
        ("solov2/solov2_light_448_R_50_FPN_3x", "WXinlong/SOLO", 374),
        ("solov2/solov2_R_50_FPN_3x_adelaidet", "AdelaiDet", 333),
    ],
)
def test_number_of_published_tensors(config, source, count):
    assert len(_make_file(*_describe_model(config), source)) == count


@pytest.mark.parametrize(
    "config,millions",
    [
        ("solo/solo_R_50_FPN_3x", 36.30),
        ("solo/decoupled_solo_R_50_FPN_3x", 40.03),
        ("solo/decoupled_solo_light_R_50_FPN_3x", 32.35),
        ("solov2/solov2_R_50_FPN_3x", 46.59),
        ("solov2/solov2_light_448_R_50_FPN_3x", 31.34),
    ],
)
def test_number_of_parameters(config, millions):
    _, state = _describe_model(config)
    statistics = ("running_mean", "running_var")
    count = sum(tensor.numel() for name, tensor in state.items() if not name.endswith(statistics))
    assert count / 1e6 == pytest.approx(millions, abs=0.006)


def test_a_published_file_loads_and_a_foreign_tensor_is_refused(tmp_path):
    config = "solov2/solov2_light_448_R_18_FPN_3x"
    cfg = model_zoo.get_config(config, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    theirs, ours = build_model(cfg), build_model(cfg)
    state = _make_file("SOLOv2", theirs.state_dict(), "WXinlong/SOLO")
    file = tmp_path / "SOLOv2_LIGHT_448_R18_3x.pth"
    torch.save({"meta": {"epoch": 36}, "state_dict": state}, file)
    ZooCheckpointer(ours).load(str(file))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    with pytest.raises(CheckpointError, match=r"bbox_head\.surprise"):
        convert_state_dict({**state, "bbox_head.surprise.weight": torch.zeros(1)})
