"""The published file: names, filters that it may lack, and MATLAB's format."""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from published_names import describe_model

from instancezoo.checkpoint import CheckpointError, convert_state_dict, read_checkpoint
from instancezoo.checkpoint.convert import convert_file
from instancezoo.optional import MissingPackageError
from instancezoo.watershed.networks import make_bilinear_filters

SPEC = Path(__file__).resolve().parent.parent / "golden" / "deep_watershed" / "spec.json"
SHAPES = json.loads(SPEC.read_text())["shapes"]
CONFIG = "watershed/deep_watershed_cityscapes"
UP5 = "direction/upscore5_3/up_filter"


def _make_state(left_out: str = "?"):
    return {name: torch.zeros(shape) for name, shape in SHAPES.items() if left_out not in name}


@pytest.mark.parametrize("left_out", ["?", "up_filter", UP5])
def test_every_name_has_its_place(left_out: str) -> None:
    state = _make_state(left_out)
    converted = convert_state_dict(state)
    assert converted.layout.config == CONFIG and not converted.unused
    assert len(converted.used) == len(state)
    _, wanted = describe_model(CONFIG)
    found = {name: tensor.shape for name, tensor in converted.state.items()}
    assert found == {name: tensor.shape for name, tensor in wanted.items()}
    filters = converted.state["head.direction_net.up5.weight"]
    expected = make_bilinear_filters(256, 8) if left_out in UP5 else torch.zeros(())
    assert torch.equal(filters, expected.expand_as(filters))


def _write(path: Path, arrays: dict, **options) -> Path:
    io = pytest.importorskip("scipy.io", reason="the extra 'bottomup' is not installed")
    io.savemat(path, arrays, **options)
    return path


def test_matlab_files_are_read(tmp_path: Path) -> None:
    weights = {name: tensor.numpy() for name, tensor in _make_state("512").items()}
    weights["direction/fuse_3/biases"] = np.array([[3.0, 4.0]])  # a matrix, of doubles
    path = _write(tmp_path / "dwt.mat", weights)
    result, converted = convert_file(path)
    assert converted is not None and len(result["model"]) == 70
    bias = result["model"]["head.direction_net.fuse_3.bias"]
    assert bias.dtype == torch.float32 and bias.tolist() == [3, 4]


def test_only_numbers_of_a_matlab_file_are_kept(tmp_path: Path) -> None:
    cell = np.array([1, "a"], dtype=object)
    big_endian = np.arange(3, dtype=">i4")
    arrays = {"a": np.eye(2), "b": big_endian, "text": "x", "cell": cell, "s": {"c": np.eye(2)}}
    found = read_checkpoint(_write(tmp_path / "w.mat", arrays))["model"]
    assert found.keys() == {"a", "b"} and found["b"].tolist() == [[0, 1, 2]]


def _make_liar(content: bytes) -> bytes:
    """A file of one compressed matrix of any size whose shape says 1 x 1."""
    matrix = bytearray(zlib.decompress(content[136:]))
    matrix[32:40] = struct.pack("<2i", 1, 1)  # behind tags and flags
    packed = zlib.compress(bytes(matrix))
    return content[:128] + struct.pack("<2I", 15, len(packed)) + packed


def test_bad_matlab_files_are_refused(tmp_path: Path) -> None:
    whole = _write(
        tmp_path / "w.mat", {"a": np.random.default_rng(0).random((50, 50))}, do_compression=True
    )
    torn = tmp_path / "torn.mat"
    torn.write_bytes(whole.read_bytes()[:3000])
    new = tmp_path / "new.mat"
    new.write_bytes(b"MATLAB 7.3 MAT-file, Platform" + bytes(600))
    other = tmp_path / "other.mat"
    other.write_bytes(bytes(range(256)) * 4)
    bomb = _write(tmp_path / "bomb.mat", {"a": np.zeros((3500, 3500))}, do_compression=True)
    liar = tmp_path / "liar.mat"  # 1 x 1, by its shape
    liar.write_bytes(_make_liar(bomb.read_bytes()))
    for path, reason in (
        (liar, "many times"),
        (torn, "damaged"),
        (new, "-v7"),
        (other, "damaged"),
        (bomb, "many times"),
    ):
        with pytest.raises(CheckpointError, match=f"{path.name}.*{reason}"):
            read_checkpoint(path)


def test_a_matlab_file_needs_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "w.mat", {"a": np.eye(2)})
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingPackageError, match=r"w\.mat.*instancezoo\[bottomup\]"):
        read_checkpoint(path)
