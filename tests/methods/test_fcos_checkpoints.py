"""Published layouts of FCOS: every config's model can be filled from every source.

The fixture proves the values for R-50; here names are written as the two repositories have them.
"""

import pytest
import torch
from detectron2.modeling import build_model
from published_names import MASKRCNN_BENCHMARK, describe_model, list_shapes, rename

from instancezoo import model_zoo
from instancezoo.checkpoint import CheckpointError, ZooCheckpointer, convert_state_dict
from instancezoo.checkpoint.convert import find_layout
from instancezoo.fcos import METHOD

LAYOUTS = {layout.name: layout for layout in METHOD.layouts}
_ORIGINAL = [
    *MASKRCNN_BENCHMARK,
    (r"^proposal_generator\.fcos_head", "rpn.head"),
    (r"rpn\.head\.ctrness", "rpn.head.centerness"),
]
_ADELAIDET = [(r"conv2\.offset", "conv2_offset")]
_DEFORMABLE_TOWER = [(r"(_tower\.9)\.(weight|bias)$", r"\1.conv.\2")]


def _publish(state, source):
    """What `source` calls our tensors."""
    rows = _ORIGINAL if source == "tianzhi0549" else _ADELAIDET
    if any("tower.9.offset" in name for name in state):
        rows = [*rows, *_DEFORMABLE_TOWER]
    published = {rename(name, rows): tensor for name, tensor in state.items()}
    assert len(published) == len(state)
    return published


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_is_recognised_and_fills_its_config(name):
    layout = LAYOUTS[name]
    _, ours = describe_model(layout.config)
    published = _publish(ours, "tianzhi0549" if "tianzhi" in name else "AdelaiDet")
    converted = convert_state_dict(published)
    assert converted.layout is layout and not converted.unused
    assert len(layout.find_classes(published).names) == 80
    assert list_shapes(converted.state) == list_shapes(ours)


def test_every_backbone_has_a_layout():
    configs = {name for name in model_zoo.list_configs() if name.startswith("fcos/")}
    # Recipes that differ in training only have the weights' names of the first of them.
    recipes = {f"fcos/fcos_R_50_FPN_{end}" for end in ("1x_iou", "2x", "3x")}
    small = {"fcos/fcos_tiny", "fcos/fcos_nuclei"}
    assert configs - recipes - small <= {LAYOUTS[n].config for n in LAYOUTS}


@pytest.fixture(scope="module")
def state():
    return describe_model("fcos/fcos_R_50_FPN_1x")[1]


def test_early_names_leftovers_and_wrappers(state):
    assert len(state) == 324
    early = {name.replace("ctrness", "centerness"): tensor for name, tensor in state.items()}
    converted = convert_state_dict({**early, "pixel_mean": torch.zeros(3, 1, 1)})
    assert converted.state.keys() == state.keys() and converted.unused == ["pixel_mean"]
    wrapped = {f"module.{name}": t for name, t in _publish(state, "tianzhi0549").items()}
    converted = convert_state_dict(wrapped)
    assert converted.state.keys() == state.keys()
    assert converted.layout.licence.startswith("2-clause BSD for academic use")


@pytest.mark.parametrize(
    "name", ["top_layer.weight", "roi_heads.mask_head.x", "mask_branch.0.bias"]
)
def test_methods_that_stand_on_fcos_are_not_taken_for_it(state, name):
    layout = find_layout({**state, name: torch.zeros(1)})
    assert layout is None or layout.method != "FCOS"


def test_a_foreign_tensor_is_named(state):
    with pytest.raises(CheckpointError, match=r"backbone_2\.surprise"):
        convert_state_dict({**state, "backbone_2.surprise": torch.zeros(1)})


def test_a_published_file_starts_a_run_that_averages(tmp_path):
    def build(*overrides):
        keys = ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.WEIGHTS", ""]
        return build_model(model_zoo.get_config("fcos/fcos_R_50_FPN_1x", [*keys, *overrides]))

    theirs, ours = build(), build("MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg")
    torch.save({"model": _publish(theirs.state_dict(), "tianzhi0549")}, tmp_path / "fcos.pth")
    ZooCheckpointer(ours).load(str(tmp_path / "fcos.pth"))
    loaded = ours.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in theirs.state_dict().items())
    # What our own runs save is read back.
    ours.proposal_generator.moving_num_foreground.fill_(7)
    ZooCheckpointer(ours, str(tmp_path)).save("model_final")
    again = build("MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg")
    ZooCheckpointer(again).load(str(tmp_path / "model_final.pth"))
    assert again.proposal_generator.moving_num_foreground == 7
