"""Published layouts of YOLACT: each config's model can be filled.

The fixtures prove the values for R-50; here names are written as the official code writes them.
"""

import pytest
import torch
from published_names import add_counters, describe_model, list_shapes, rename

from instancezoo.checkpoint import CheckpointError, convert_state_dict
from instancezoo.yolact import METHOD

LAYOUTS = {layout.name: layout for layout in METHOD.layouts}
_RESNET = [
    (r"^backbone\.bottom_up\.stem\.conv1\.norm", "backbone.bn1"),
    (r"^backbone\.bottom_up\.stem", "backbone"),
    (r"^backbone\.bottom_up\.res(\d)", lambda m: f"backbone.layers.{int(m[1]) - 2}"),
    (r"\.shortcut\.norm", ".downsample.1"),
    (r"\.shortcut", ".downsample.0"),
    (r"^(backbone\.layers.*)\.conv(\d)\.norm", r"\1.bn\2"),
    (r"conv2\.offset", "conv2.conv_offset_mask"),
]
_DARKNET = [
    (r"^backbone\.bottom_up\.stem", "backbone._preconv"),
    (r"^backbone\.bottom_up\.res(\d)", lambda m: f"backbone.layers.{int(m[1]) - 1}"),
    (r"^(backbone\._preconv|backbone\.layers.*)\.conv\.", r"\1.0."),
    (r"^(backbone\._preconv|backbone\.layers.*)\.norm\.", r"\1.1."),
]
_REST = [
    (r"^backbone\.fpn_lateral(\d)", lambda m: f"fpn.lat_layers.{5 - int(m[1])}"),
    (r"^backbone\.fpn_output(\d)", lambda m: f"fpn.pred_layers.{5 - int(m[1])}"),
    (r"^backbone\.top_block\.p(\d)", lambda m: f"fpn.downsample_layers.{int(m[1]) - 6}"),
    (r"^head\.prototypes\.7", "proto_net.8"),
    (r"^head\.prototypes\.9", "proto_net.10"),
    (r"^head\.prototypes", "proto_net"),
    (r"^head\.tower", "prediction_layers.0.upfeature"),
    (r"^head\.bbox_pred", "prediction_layers.0.bbox_layer"),
    (r"^head\.cls_logits", "prediction_layers.0.conf_layer"),
    (r"^head\.coefficients", "prediction_layers.0.mask_layer"),
    (r"^head\.semantic", "semantic_seg_conv"),
    (r"^head\.mask_iou\.convs", "maskiou_net.maskiou_net"),
]


def _make_file(config):
    """Ours (name -> tensor without values), and the same as published."""
    _, ours = describe_model(config)
    rows = [*(_DARKNET if "D_53" in config else _RESNET), *_REST]
    published = {rename(name, rows): tensor for name, tensor in ours.items()}
    assert len(published) == len(ours)
    return ours, add_counters(published)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_recognised_and_fills_its_model(name):
    ours, published = _make_file(LAYOUTS[name].config)
    converted = convert_state_dict(published)
    assert converted.layout.name == name
    assert list_shapes(converted.state) == list_shapes(ours)
    assert not converted.unused and not converted.unknown
    assert len(converted.layout.find_classes(published).names) == 80


def test_the_first_versions_duplicates_are_left_out():
    ours, published = _make_file("yolact/yolact_R_50_FPN_54e")
    kept = ("backbone.layers.0.0.conv1.weight", "fpn.downsample_layers.1.weight")
    duplicates = {
        "backbone.layer1.0.conv1.weight": published[kept[0]],
        **{f"fpn.downsample_layers.{n}.weight": published[kept[1]] for n in (2, 3, 5)},
    }
    converted = convert_state_dict(published | duplicates)
    assert list_shapes(converted.state) == list_shapes(ours)
    assert set(converted.unused) == set(duplicates)


def test_a_file_without_predictions_is_refused():
    _, published = _make_file("yolact/yolact_R_50_FPN_54e")
    del published["prediction_layers.0.conf_layer.weight"]
    with pytest.raises(CheckpointError, match="conf_layer"):
        convert_state_dict({name: torch.zeros(()) for name in published})
