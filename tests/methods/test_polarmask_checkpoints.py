"""Published layouts of PolarMask: each config's model can be filled.

The fixture proves the values for R-50; here names are written as the official code writes them.
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

from instancezoo import model_zoo
from instancezoo.checkpoint import CheckpointError, ZooCheckpointer, convert_state_dict
from instancezoo.polarmask import METHOD

LAYOUTS = {layout.name: layout for layout in METHOD.layouts}

_NAMES = [
    *list_mmdetection_rows(finest=3),
    (r"^(backbone.layer.*)\.conv2\.offset", r"\1.conv2_offset"),
    (r"head\.cls_logits", "bbox_head.polar_cls"),
    (r"head\.ctrness", "bbox_head.polar_centerness"),
    (r"head\.bbox_pred", "bbox_head.polar_reg"),
    (r"head\.ray_pred", "bbox_head.polar_mask"),
    (r"^head\.scales_bbox", "bbox_head.scales_bbox"),
    (r"^head\.scales_ray", "bbox_head.scales_mask"),
]
_TOWER = re.compile(r"head\.(cls|bbox|mask)_tower\.(\d)\.(?:(norm|offset)\.)?(weight|bias)")


def _publish(name, is_deformable):
    tower = _TOWER.fullmatch(name)
    if tower:
        convs = f"bbox_head.{tower[1].replace('bbox', 'reg')}_convs"
        if not is_deformable:
            return f"{convs}.{tower[2]}.{'gn' if tower[3] else 'conv'}.{tower[4]}"
        place = {"norm": ".", "offset": ".conv_offset_mask."}.get(tower[3], ".")
        return f"{convs}.{3 * int(tower[2]) + (tower[3] == 'norm')}{place}{tower[4]}"
    return rename(name, _NAMES)


def _make_file(config):
    """Ours (name -> tensor without values), and the same as published."""
    cfg, ours = describe_model(config)
    published = {}
    for name, tensor in ours.items():
        theirs = _publish(name, cfg.MODEL.POLARMASK.USE_DEFORMABLE)
        published[theirs] = tensor.view(()) if theirs.endswith(".scale") else tensor
    assert len(published) == len(ours)
    return ours, add_counters(published)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_recognised_and_fills_its_config(name):
    ours, published = _make_file(LAYOUTS[name].config)
    converted = convert_state_dict(published)
    assert converted.layout is LAYOUTS[name]
    assert len(LAYOUTS[name].find_classes(published).names) == 80
    assert list_shapes(converted.state) == list_shapes(ours)
    assert all(key.endswith("num_batches_tracked") for key in converted.unused)


def test_every_1x_config_has_a_layout():
    configs = {n for n in model_zoo.list_configs() if re.match(r"polarmask/.*_1x$", n)}
    assert configs == {LAYOUTS[name].config for name in LAYOUTS}


def test_number_of_published_tensors_and_parameters():
    ours, published = _make_file("polarmask/polarmask_R_50_FPN_1x")
    assert len(published) == 388
    statistics = ("running_mean", "running_var")
    count = sum(tensor.numel() for name, tensor in ours.items() if not name.endswith(statistics))
    assert count / 1e6 == pytest.approx(34.74, abs=0.006)
    heads = sum(tensor.numel() for name, tensor in ours.items() if name.startswith("head."))
    assert heads / 1e6 == pytest.approx(7.36, abs=0.006)


def test_names_of_a_deformable_tower():
    _, published = _make_file("polarmask/polarmask_R_50_DCN_FPN_1x")
    tower = {name for name in published if name.startswith("bbox_head.mask_convs.9")}
    parts = ("weight", "bias", "conv_offset_mask.weight", "conv_offset_mask.bias")
    assert tower == {f"bbox_head.mask_convs.9.{part}" for part in parts}
    assert published["bbox_head.mask_convs.10.weight"].shape == (256,)
    assert published["backbone.layer2.0.conv2_offset.weight"].shape[0] == 18


def test_a_published_file_loads_and_a_foreign_tensor_is_refused(tmp_path):
    config = "polarmask/polarmask_R_50_FPN_1x"
    cfg = model_zoo.get_config(config, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    theirs, ours = build_model(cfg), build_model(cfg)
    state = {_publish(name, False): tensor for name, tensor in theirs.state_dict().items()}
    state = {k: v.view(()) if k.endswith(".scale") else v for k, v in state.items()}
    file = tmp_path / "r50_768_1x.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": state, "optimizer": {}}, file)
    ZooCheckpointer(ours).load(str(file))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    with pytest.raises(CheckpointError, match=r"bbox_head\.surprise"):
        convert_state_dict({**state, "bbox_head.surprise.weight": torch.zeros(1)})
