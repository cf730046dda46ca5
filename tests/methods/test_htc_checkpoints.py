"""Published layouts of HTC and MMDetection's Mask R-CNN family: each config's model can be filled.

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
from instancezoo.checkpoint import (
    CheckpointError,
    ZooCheckpointer,
    checkpointer,
    convert,
    convert_state_dict,
)
from instancezoo.checkpoint.mmdetection import check_origin
from instancezoo.htc import METHOD
from instancezoo.mask_rcnn.convert import MMDETECTION_LAYOUTS

ON_CPU = ["MODEL.DEVICE", "cpu"]
LAYOUTS = {layout.name: layout for layout in (*METHOD.layouts, *MMDETECTION_LAYOUTS)}
_STAGE = r"((?:\.\d)?)"
_NAMES = [
    *list_mmdetection_rows(finest=2),
    (r"^(backbone.layer.*)\.conv2\.offset", r"\1.conv2.conv_offset"),
    (r"^proposal_generator\.rpn_head\.conv", "rpn_head.rpn_conv"),
    (r"^proposal_generator\.rpn_head\.objectness_logits", "rpn_head.rpn_cls"),
    (r"^proposal_generator\.rpn_head\.anchor_deltas", "rpn_head.rpn_reg"),
    (rf"^roi_heads\.box_head{_STAGE}\.fc1", r"roi_head.bbox_head\1.shared_fcs.0"),
    (rf"^roi_heads\.box_head{_STAGE}\.fc2", r"roi_head.bbox_head\1.shared_fcs.1"),
    (rf"^roi_heads\.box_predictor{_STAGE}\.cls_score", r"roi_head.bbox_head\1.fc_cls"),
    (rf"^roi_heads\.box_predictor{_STAGE}\.bbox_pred", r"roi_head.bbox_head\1.fc_reg"),
    (r"^roi_heads\.mask_head(.*)\.deconv", r"roi_head.mask_head\1.upsample"),
    (r"^roi_heads\.mask_head(.*)\.predictor", r"roi_head.mask_head\1.conv_logits"),
    (r"^roi_heads\.mask_head(.*)\.conv_res", r"roi_head.mask_head\1.conv_res.conv"),
    (
        r"^roi_heads\.mask_head(.*)\.mask_fcn(\d)",
        lambda m: f"roi_head.mask_head{m[1]}.convs.{int(m[2]) - 1}.conv",
    ),
    (r"^roi_heads\.semantic_head\.conv_logits", "roi_head.semantic_head.conv_logits"),
    (r"^roi_heads\.semantic_head\.(.*)\.(weight|bias)", r"roi_head.semantic_head.\1.conv.\2"),
]


def _make_file(config):
    """Ours (name -> tensor without values), and the same as published."""
    _, ours = describe_model(config)
    published = {rename(name, _NAMES): tensor for name, tensor in ours.items()}
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


def test_every_20e_and_mmdet_config_has_a_layout():
    pattern = re.compile(
        r"htc/htc_[RX].*_20e(_multiscale)?$|.*_mmdet$|htc/htc_without_semantic_R_50.*"
    )
    configs = {name for name in model_zoo.list_configs() if pattern.match(name)}
    assert configs == {LAYOUTS[name].config for name in LAYOUTS}


def test_number_of_published_tensors_and_names():
    ours, published = _make_file("htc/htc_R_50_FPN_20e")
    assert len(published) == 426
    assert sum(name.endswith("num_batches_tracked") for name in published) == 53
    assert published["roi_head.semantic_head.conv_logits.weight"].shape == (183, 256, 1, 1)
    assert published["roi_head.bbox_head.2.fc_reg.weight"].shape == (4, 1024)
    assert "roi_head.mask_head.0.conv_res.conv.weight" not in published
    assert not any(name.startswith("roi_heads") for name in published)


def test_class_specific_deltas_keep_their_order():
    _, published = _make_file("mask_rcnn/mask_rcnn_R_50_FPN_1x_mmdet")
    name = "roi_head.bbox_head.fc_reg.weight"
    assert published[name].shape == (320, 1024)
    values = torch.arange(320.0)[:, None].expand(320, 1024)
    converted = convert_state_dict({**published, name: values})
    assert torch.equal(converted.state["roi_heads.box_predictor.bbox_pred.weight"], values)


def test_files_of_the_first_version_are_refused():
    # Their background is class 0, and their names lack `roi_head`.
    _, published = _make_file("htc/htc_R_50_FPN_20e")
    old = {name.removeprefix("roi_head."): tensor for name, tensor in published.items()}
    with pytest.raises(CheckpointError, match=r"MMDetection 1, .*'roi_head\.'.*background"):
        convert_state_dict(old)
    layout = LAYOUTS["MMDetection htc_R_50_FPN"]
    with pytest.raises(CheckpointError, match=r"mmdet_version is 1\.2\.0: .*background"):
        check_origin({"meta": {"mmdet_version": "1.2.0"}}, layout)


CAFFE = "MODEL.PIXEL_STD", [1.0, 1.0, 1.0], "MODEL.RESNETS.STRIDE_IN_1X1", True
STYLES = {"pytorch": (), "caffe": ("INPUT.FORMAT", "BGR", *CAFFE), "mixed": CAFFE}
TEXTS = {
    "pytorch": "backbone=dict(style='pytorch')\nimg_norm_cfg = dict(to_rgb=True)",
    "caffe": "{'backbone': {'style': 'caffe'}, 'bgr_to_rgb': False}",
    "mixed": "backbone=dict(style='pytorch')\nimg_norm_cfg = dict(to_rgb=False)",
}


@pytest.mark.parametrize("model_style", STYLES)
def test_the_model_must_have_the_style_of_the_file(model_style):
    layout = LAYOUTS["MMDetection mask_rcnn_R_50_FPN"]
    overrides = [*ON_CPU, *STYLES[model_style]]
    model = build_model(model_zoo.get_config(layout.config, overrides))
    for style, text in TEXTS.items():
        checkpoint = {"meta": {"config": text}}
        if style == model_style:
            check_origin(checkpoint, layout, model)
            continue
        with pytest.raises(CheckpointError, match=rf"'{style}'.*INPUT.FORMAT.*STRIDE_IN_1X1"):
            check_origin(checkpoint, layout, model)
    for meta in (None, "text", {}, {"config": 3}, {"config": "x = 1"}):
        check_origin({"meta": meta}, layout, model)


def test_the_style_is_checked_where_files_are_loaded_and_converted(tmp_path, monkeypatch):
    _, published = _make_file("mask_rcnn/mask_rcnn_R_50_FPN_1x_mmdet")
    state = {name: torch.zeros(()).expand(x.shape) for name, x in published.items()}
    path = tmp_path / "caffe.pth"
    path.touch()
    for module in (convert, checkpointer):  # a real file of this model has 170 MB
        content = {"model": state, "meta": {"cfg": TEXTS["caffe"]}}
        monkeypatch.setattr(module, "read_checkpoint", lambda _, content=content: content)
    with pytest.raises(CheckpointError, match=r"caffe\.pth.*'caffe'.*MODEL\.WEIGHTS.*FORMAT BGR"):
        convert.convert_file(path)
    model = build_model(model_zoo.get_config("mask_rcnn/mask_rcnn_R_50_FPN_1x_mmdet", ON_CPU))
    with pytest.raises(CheckpointError, match=r"caffe\.pth.*'caffe'.*INPUT\.FORMAT BGR"):
        ZooCheckpointer(model).load(str(path))
