"""Class names travel with the weights, and are compared where weights meet a data set."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from safetensors import safe_open
from torch import nn
from torchvision.models import resnet18

from instancezoo.checkpoint import CheckpointError, ZooCheckpointer
from instancezoo.checkpoint.classes import ClassList, compare_classes
from instancezoo.checkpoint.convert import convert_file, list_layouts
from instancezoo.checkpoint.description import read_description
from instancezoo.cli.main import main
from instancezoo.testing import build_seeded_model, get_tiny_config

ANIMALS = ("cat", "dog", "hen")


class Net(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 3)
        self.cls_logits = nn.Linear(3, num_classes)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTANCEZOO_CACHE", str(tmp_path / "cache"))


@dataclass
class Optimizer:
    """Something to resume beside the model."""

    state: int = 0

    def state_dict(self) -> dict[str, int]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = state["state"]


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """Weights that were trained on `ANIMALS`."""
    facts = {"cfg": "SEED: 1\n", **ClassList(ANIMALS, (3, 5, 9)).to_facts()}
    ZooCheckpointer(Net(), str(tmp_path), facts=facts).save("model_final", iteration=2)
    return str(tmp_path / "model_final.pth")


@pytest.mark.parametrize(
    ("trained", "wanted", "kind"),
    [
        (("cat", "dog"), ("cat", "dog"), None),
        ((), ("cat", "dog"), None),
        (("cat", "dog"), (), None),
        (("cat", "dog"), ("dog", "cat"), "order"),
        (("a", "a", "b"), ("a", "b", "a"), "order"),
        (("cat", "dog"), ("cat", "cow"), "names"),
        (("cat", "dog"), ("Cat", "dog"), "names"),
        (("a", "a", "b"), ("a", "b", "b"), "names"),
        (("cat", "dog"), ("cat", "dog", "cow"), "number"),
    ],
)
def test_kinds_of_difference(trained, wanted, kind) -> None:
    difference = compare_classes(trained, wanted)
    assert (difference and difference.kind) == kind


def test_message_shows_positions_lists_and_the_remedy() -> None:
    difference = compare_classes(("cat", "dog", "hen"), ("cat", "hen", "dog"))
    assert difference is not None
    for words in (
        "class 1 is 'dog' there and 'hen' here, class 2 is 'hen' there and 'dog' here",
        "3 classes (cat, dog, hen)",
        "3 classes (cat, hen, dog)",
        "(cat 1, dog 2, hen 3)",
    ):
        assert words in difference.message
    many = [f"c{i:02}" for i in range(80)]
    long = compare_classes(many, many[::-1])
    assert long is not None and "and 75 more" in long.message and len(long.message) < 900


@pytest.mark.parametrize("starts_training", [False, True])
def test_another_order_is_an_error_everywhere(trained: str, starts_training: bool) -> None:
    net = Net()
    before = net.cls_logits.weight.clone()
    wanted = ClassList(("dog", "cat", "hen"))
    checkpointer = ZooCheckpointer(net, classes=wanted, allow_partial=True)
    with pytest.raises(CheckpointError, match=r"model_final\.pth: .*another order.*'cat' there"):
        checkpointer.load(trained, checkpointables=[] if starts_training else None)
    assert torch.equal(net.cls_logits.weight, before), "a refused file changes nothing"


def test_other_names_are_an_error_if_nothing_is_trained(trained: str, caplog) -> None:
    wanted = ClassList(("cat", "dog", "cow"))
    with pytest.raises(CheckpointError, match="class 2 is 'hen' there and 'cow' here"):
        ZooCheckpointer(Net(), classes=wanted).load(trained)
    with caplog.at_level(logging.WARNING):
        ZooCheckpointer(Net(), classes=wanted, allow_partial=True).load(trained)
    assert caplog.text.count("class 2 is 'hen'") == 1


def test_resuming_needs_the_same_names_and_a_new_training_does_not(
    trained: str, caplog, tmp_path: Path
) -> None:
    wanted = ClassList(("cat", "dog", "cow"))
    checkpointer = ZooCheckpointer(Net(), str(tmp_path), classes=wanted, optimizer=Optimizer())
    with pytest.raises(CheckpointError, match="'cow'"):
        checkpointer.resume_or_load("", resume=True)
    with caplog.at_level(logging.WARNING):
        checkpointer.resume_or_load(trained, resume=False)
    assert caplog.text.count("class 2 is 'hen'") == 1


def _list_warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Without the lines of lower levels that other tests of the process may have switched on."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_another_number_shows_both_lists(trained: str, caplog) -> None:
    wanted = ClassList(("cat", "dog"))
    with pytest.raises(CheckpointError, match=r"3 classes \(cat, dog, hen\).*2 classes \(cat"):
        ZooCheckpointer(Net(2), classes=wanted).load(trained)
    with caplog.at_level(logging.WARNING):
        ZooCheckpointer(Net(2), classes=wanted, allow_partial=True).load(trained)
    assert len(_list_warnings(caplog)) == 1 and "(cat, dog, hen)" in caplog.text
    with pytest.raises(CheckpointError, match="2 classes"):  # whatever the tensors' shapes
        ZooCheckpointer(Net(3), classes=wanted).load(trained)


def test_the_same_or_unknown_names_are_silent(trained: str, caplog, tmp_path: Path) -> None:
    torch.save({"model": Net().state_dict(), "class_names": 5, "cfg": {}}, tmp_path / "theirs.pth")
    with caplog.at_level(logging.WARNING):
        ZooCheckpointer(Net(), classes=ClassList(ANIMALS)).load(trained)
        ZooCheckpointer(Net()).load(trained)
        ZooCheckpointer(Net(), classes=ClassList(ANIMALS)).load(str(tmp_path / "theirs.pth"))
    assert not _list_warnings(caplog)


def test_spoilt_names_are_one_clear_error(tmp_path: Path) -> None:
    for facts in ({"class_names": ["cat", 3]}, {"class_names": ["cat"], "category_ids": [1, 2]}):
        ZooCheckpointer(Net(), str(tmp_path), facts=facts).save("model")
        path = str(tmp_path / "model.pth")
        for use in (read_description, ZooCheckpointer(Net()).load, convert_file):
            with pytest.raises(CheckpointError, match=r"model\.pth: it.*class_names"):
                use(path)


@pytest.mark.parametrize("suffixes", [(".safetensors",), (".safetensors", ".pth"), (".pth",)])
def test_conversion_keeps_config_and_names(trained: str, tmp_path: Path, suffixes, capsys) -> None:
    source = trained
    for number, suffix in enumerate(suffixes):
        target = str(tmp_path / f"{number}{suffix}")
        assert main(["convert", source, target]) == 0
        source = target
    assert "3 classes (cat, dog, hen)" in capsys.readouterr().out
    description = read_description(source)
    assert description.config_text == "SEED: 1\n"
    assert description.classes == ClassList(ANIMALS, (3, 5, 9))
    with pytest.raises(CheckpointError, match="another order"):
        ZooCheckpointer(Net(), classes=ClassList(ANIMALS[::-1])).load(source)


def test_conversion_takes_the_average_that_evaluation_uses(tmp_path: Path) -> None:
    net, average = Net(), torch.optim.swa_utils.AveragedModel(Net())
    ZooCheckpointer(net, str(tmp_path), ema=average).save("model")
    state = convert_file(tmp_path / "model.pth")[0]["model"]
    expected = average.module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_every_published_layout_names_its_classes() -> None:
    for layout in list_layouts():
        assert (layout.trained_on is None) == (layout.fills == "backbone"), layout.name
        if layout.trained_on is not None:
            known = MetadataCatalog.get(layout.trained_on.dataset).thing_classes
            assert len(known) == (8 if "cityscapes" in layout.config else 80)


def _make_zoo_state(num_classes: int) -> dict[str, torch.Tensor]:
    """What marks Detectron2's Mask R-CNN, in small."""
    fpn, rpn = "backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight"
    return {
        "backbone.bottom_up.res2.0.conv1.weight": torch.ones(64, 64, 1, 1),
        **{name: torch.ones(2, 2, 1, 1) for name in (fpn, rpn)},
        "roi_heads.box_predictor.cls_score.weight": torch.ones(num_classes + 1, 2),
        "roi_heads.mask_head.predictor.weight": torch.ones(num_classes, 2, 1, 1),
        "roi_heads.mask_head.predictor.bias": torch.ones(num_classes),
    }


def test_a_published_file_has_its_names_converted_or_not(tmp_path: Path) -> None:
    coco = MetadataCatalog.get("coco_2017_val")
    source, target = tmp_path / "w.pth", tmp_path / "w.safetensors"
    torch.save({"model": _make_zoo_state(80)}, source)
    again = str(tmp_path / "again.pth")
    assert main(["convert", str(source), str(target)]) == 0
    assert main(["convert", str(target), again]) == 0
    for path in (str(source), str(target), again, f"published://{source}"):
        found = read_description(path)
        assert found.classes == ClassList.from_metadata(coco)
        assert found.config_name == "mask_rcnn/mask_rcnn_R_50_FPN_3x"
    assert found.classes.names[2] == "car" and found.classes.category_ids[-1] == 90
    with safe_open(str(target), framework="pt") as file:
        assert {"config", "class_names"} <= file.metadata().keys()


@pytest.mark.parametrize("num_outputs", [91, 4])
def test_torchvision_numbers_coco_by_category_ids(num_outputs: int) -> None:
    layout = next(x for x in list_layouts() if x.name == "torchvision maskrcnn_resnet50_fpn")
    state = {"roi_heads.mask_predictor.mask_fcn_logits.bias": torch.ones(num_outputs)}
    assert len(layout.find_classes(state).names) == (80 if num_outputs == 91 else 0)


def test_the_same_layout_with_other_outputs_has_no_names(tmp_path: Path) -> None:
    torch.save({"model": _make_zoo_state(3)}, tmp_path / "w.pth")
    assert not read_description(str(tmp_path / "w.pth")).classes
    assert "class_names" not in convert_file(tmp_path / "w.pth")[0]


@pytest.mark.parametrize("form", ["{}", "published://{}", "converted"])
def test_a_bare_backbone_starts_a_training_in_every_form(form: str, tmp_path: Path) -> None:
    source, target = tmp_path / "resnet18.pth", str(tmp_path / "w.safetensors")
    torch.save(resnet18(weights=None).state_dict(), source)
    if form == "converted":
        assert main(["convert", str(source), target]) == 0
    model = build_seeded_model(get_tiny_config("mask_rcnn/mask_rcnn_tiny"))
    path = target if form == "converted" else form.format(source)
    ZooCheckpointer(model, classes=ClassList(("a", "b", "c", "d"))).load(path)
    loaded = model.state_dict()["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(loaded, torch.load(source)["conv1.weight"])
