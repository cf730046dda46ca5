"""A training that extends a model starts from weights without the new parts; nothing else does."""

from pathlib import Path

import pytest
import torch
from torch import nn

from instancezoo.checkpoint import CheckpointError, ZooCheckpointer
from instancezoo.testing import build_seeded_model, get_tiny_config

PLAIN, EXTENDED = "mask_rcnn/mask_rcnn_tiny", "semiconv/semiconv_mask_rcnn_tiny"
NEW = ("roi_heads.semiconv_head.", "roi_heads.log_sigma")


class Net(nn.Module):
    """A body with two new parts."""

    new_parts = ("extra.", "scale")

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.extra = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(()))


def _save(folder: Path, *left_out: str) -> str:
    state = {n: t for n, t in Net().state_dict().items() if not n.startswith(left_out)}
    file = folder / "model.pth"
    torch.save({"model": state}, file)
    return str(file)


def test_a_training_starts_without_new_parts(tmp_path: Path) -> None:
    file, net = _save(tmp_path, "extra.", "scale"), nn.Sequential(Net())  # nested: names follow
    torch.save({"model": {f"0.{n}": t for n, t in torch.load(file)["model"].items()}}, file)
    before = net[0].extra.weight.clone()
    ZooCheckpointer(net).load(file, checkpointables=[])
    assert torch.equal(net[0].body.weight, torch.load(file)["model"]["0.body.weight"])
    assert torch.equal(net[0].extra.weight, before)


def test_an_evaluation_does_not(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"extra\.weight"):
        ZooCheckpointer(Net()).load(_save(tmp_path, "extra.", "scale"))


@pytest.mark.parametrize("left_out", [("extra.",), ("body.",), ("body.", "extra.", "scale")])
def test_other_missing_tensors_are_refused(left_out: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        ZooCheckpointer(Net()).load(_save(tmp_path, *left_out), checkpointables=[])


@pytest.mark.parametrize("is_ours", [True, False])
def test_mask_rcnn_weights_start_its_extension(is_ours: bool, tmp_path: Path) -> None:
    plain = build_seeded_model(get_tiny_config(PLAIN), seed=1)
    if is_ours:
        ZooCheckpointer(plain, str(tmp_path)).save("model")
    else:  # as Detectron2's zoo
        torch.save({"model": plain.state_dict(), "__author__": "zoo"}, tmp_path / "model.pth")
    extended = build_seeded_model(get_tiny_config(EXTENDED), seed=2)
    ZooCheckpointer(extended).load(str(tmp_path / "model.pth"), checkpointables=[])
    state, theirs = extended.state_dict(), plain.state_dict()
    assert {name for name in state if name not in theirs} == {
        name for name in state if name.startswith(NEW)
    }
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.items())
    with pytest.raises(CheckpointError, match="log_sigma"):
        ZooCheckpointer(extended).load(str(tmp_path / "model.pth"))
