"""`instancezoo convert`."""

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from instancezoo.checkpoint import ZooCheckpointer, read_checkpoint
from instancezoo.checkpoint.reader import is_ours
from instancezoo.cli.main import main


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("convert") / "resnet18.pth"
    torch.save(resnet18(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["out/w.safetensors", "w.pth"])
def test_convert(source: Path, tmp_path: Path, name: str, capsys) -> None:
    target = tmp_path / name
    assert main(["convert", str(source), str(target)]) == 0
    printed = capsys.readouterr().out
    for words in ("torchvision resnet", "BSD-3-Clause", "100 used, 22 without", "unused: fc.bias"):
        assert words in printed
    checkpoint = read_checkpoint(target)
    assert is_ours(checkpoint)
    stem = "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(checkpoint["model"][stem], torch.load(source)["conv1.weight"])
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(target), str(again)]) == 0
    assert read_checkpoint(again)["model"].keys() == checkpoint["model"].keys()


def test_our_own_training_file(tmp_path: Path, capsys) -> None:
    ZooCheckpointer(torch.nn.Linear(2, 3), str(tmp_path)).save("model_final", iteration=1)
    target = tmp_path / "w.safetensors"
    assert main(["convert", str(tmp_path / "model_final.pth"), str(target)]) == 0
    assert "own already: 2 tensors" in capsys.readouterr().out
    assert read_checkpoint(target)["model"].keys() == {"weight", "bias"}


def test_unknown_names(source: Path, tmp_path: Path, capsys) -> None:
    path, target = tmp_path / "w.pth", tmp_path / "w.safetensors"
    torch.save({**torch.load(source), "extra.weight": torch.ones(1)}, path)
    assert main(["convert", str(path), str(target)]) == 1
    error = capsys.readouterr().err
    assert "extra.weight" in error and error.count("\n") == 1 and not target.exists()
    assert main(["convert", str(path), str(target), "--allow-partial"]) == 0
    assert "unknown, left out: extra.weight" in capsys.readouterr().out


def test_errors_take_one_line(source: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "torn.pth").write_bytes(source.read_bytes()[:1000])
    torch.save({"x": torch.ones(1)}, tmp_path / "other.pth")
    cases = [
        (tmp_path / "absent.pth", "w.pth", "does not exist"),
        (tmp_path / "torn.pth", "w.pth", "damaged"),
        (tmp_path / "other.pth", "w.pth", "no known layout"),
        (source, "w.jpg", "must end in .safetensors or .pth"),
        (source.parent, "w.pth", "is a folder"),
    ]
    for path, target, words in cases:
        assert main(["convert", str(path), str(tmp_path / target)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1
        assert not (tmp_path / target).exists()


def test_help_lists_the_subcommands(capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "convert" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["convert"])
    with pytest.raises(SystemExit):
        main(["nonsense"])
