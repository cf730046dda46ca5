"""Files made to exhaust the reader, or to bring values that no model can use, are refused."""

import json
import os
import pickle
import re
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint import hostile_files
from torch import Tensor, nn

from instancezoo import model_zoo
from instancezoo.checkpoint import CheckpointError, ZooCheckpointer, read_checkpoint
from instancezoo.checkpoint.checkpointer import is_whole, use_average
from instancezoo.checkpoint.convert import MAX_TENSORS, convert_file, describe_nearest, find_layout
from instancezoo.checkpoint.description import read_description
from instancezoo.checkpoint.mismatch import compare_tensors
from instancezoo.cli.main import main
from instancezoo.errors import ConfigError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5])}
AUTHOR = {"__author__": "InstanceZoo"}


def refuse(path: Path) -> str:
    """The message of a file that is refused: one line that names the file."""
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.isprintable() and len(message) < len(str(path)) + 900
    return message


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("name", hostile_files.MULTIPLYING)
def test_containers_that_multiply(tmp_path: Path, name: str, suffix: str) -> None:
    program = hostile_files.MULTIPLYING[name]
    path = hostile_files.write_program(tmp_path / f"w{suffix}", program)
    assert re.search("many times the size|tuple of tuples", refuse(path))


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("name", hostile_files.PROGRAMS)
def test_programs(tmp_path: Path, name: str, suffix: str) -> None:
    refuse(hostile_files.write_program(tmp_path / f"w{suffix}", hostile_files.PROGRAMS[name]))


def test_shared_and_tied_content_is_read(tmp_path: Path) -> None:
    shared = ["x" * 1000] * 100
    data = {"model": {**STATE, "tied": STATE["a.weight"]}, "meta": {"a": shared, "b": shared}}
    torch.save(data, tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    assert checkpoint["meta"] == data["meta"]
    model = checkpoint["model"]
    assert model["tied"].data_ptr() == model["a.weight"].data_ptr()


class Attributed(nn.Parameter):
    """A parameter of another class, as some packages save."""


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path: Path, legacy: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    tensors: dict[str, Tensor] = {
        **{f"{dtype}": base.mul(9).to(dtype) for dtype in (torch.float64, torch.half, torch.int8)},
        **{f"{dtype}": base.gt(0).to(dtype) for dtype in (torch.bool, torch.uint8, torch.int64)},
        "bfloat16": base.bfloat16(),
        "view": base[1:4, ::2],
        "transposed": base.T,
        "one row for all": base[:1].expand(6, 4),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 7),
        "parameter": nn.Parameter(base),
        "slice of a parameter": nn.Parameter(base)[2:].detach(),
        "no gradient": nn.Parameter(base, requires_grad=False),
    }
    tensors["attribute"] = nn.Parameter(base.clone())
    tensors["attribute"].no_decay = True  # type: ignore[attr-defined]
    if not legacy:  # there torch itself cannot read it
        tensors["uint16"] = torch.ones(5, dtype=torch.uint16)
    path = tmp_path / "w.pth"
    content = {"state_dict": OrderedDict(tensors), "set": {1, 2}, "c": 1j, "b": b"x", "n": None}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    got, expected = read_checkpoint(path), torch.load(path, weights_only=True)
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(got["model"][name], tensor), name
        assert got["model"][name].dtype == tensor.dtype
        assert got["model"][name].stride() == tensor.stride()
    assert all(got[key] == content[key] for key in ("set", "c", "b", "n"))


@pytest.mark.parametrize(
    ("size", "stride", "offset", "num_stored"),
    [
        ((10**10,), (0,), 0, 4),  # 40 GB of one number
        ((10**5, 10**5), (0, 0), 0, 4),
        ((5,), (1,), 0, 4),
        ((2, 2), (3, 1), 0, 4),
        ((4,), (1,), 1, 4),
        ((4,), (1,), -1, 4),
        ((-4,), (1,), 0, 4),
        ((4,), (-1,), 3, 4),
        ((1,), (1,), 10**30, 4),
        ((2,), (2**61,), 0, 4),
        ((10**10,), (1,), 0, 10**10),  # the storage claims it, too
        ((4,), (1,), 0, 10**10),
        ((4, 1), (1,), 0, 4),
        ((1,) * 99, (1,) * 99, 0, 4),
    ],
)
def test_tensors_beyond_their_bytes(
    tmp_path: Path, size: Any, stride: Any, offset: int, num_stored: int
) -> None:
    make = hostile_files.make_tensor_program
    good = make((4,), (1,))
    path = hostile_files.write_archive(tmp_path / "w.pth", good, {"0": bytes(16)})
    assert read_checkpoint(path)["model"]["x"].tolist() == [0] * 4
    program = make(size, stride, offset, num_stored)
    hostile_files.write_archive(path, program, {"0": bytes(16)})
    assert "'x'" in refuse(path)
    hostile_files.write_archive(path, good)
    assert "not in the file" in refuse(path)


def test_compressed_archives(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"x": torch.zeros(2**20)}, tmp_path / "good.pth")
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in good.infolist():
            bomb.writestr(entry.filename, good.read(entry))
    assert path.stat().st_size < 10_000
    assert "compressed" in refuse(path)
    assert not is_whole(path)


def test_entries_that_lie_about_their_size(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    program = hostile_files.make_tensor_program((4,), (1,))
    content = hostile_files.write_archive(path, program, {"0": bytes(16)}).read_bytes()
    at = content.rindex(b"PK\x01\x02")  # the directory's entry of the storage
    sizes = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(content[: at + 20] + sizes + content[at + 28 :])
    assert re.search("beyond|overlap", refuse(path))


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [10**10], "data_offsets": [0, 4 * 10**10]}},
        {"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"x": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}},
        {f"x{i}": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for i in range(99)},
        b"[" * 100_000,
        {},
    ],
)
def test_safetensors_headers(tmp_path: Path, header: Any) -> None:
    refuse(hostile_files.write_safetensors(tmp_path / "w.safetensors", header, bytes(8)))
    refuse(hostile_files.write_safetensors(tmp_path / "w.safetensors", header, b"", 2**60))


@pytest.mark.parametrize("length", [0x3C, 0x3C20, 0x3C0A, 0x3C00 + ord("v")])
def test_header_length_that_reads_as_a_web_page(tmp_path: Path, length: int) -> None:
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path = hostile_files.write_safetensors(tmp_path / "w.safetensors", text, bytes(8))
    assert read_checkpoint(path)["model"]["x"].tolist() == [0, 0]
    for page in (b"<!DOCTYPE html><html></html>", b"\n  <html>", "<html>é</html>".encode()):
        path.write_bytes(page)
        assert "web page" in refuse(path)


@pytest.mark.parametrize("name", hostile_files.make_odd_tensors())
@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_tensors_of_other_forms_are_named(tmp_path: Path, name: str) -> None:
    value = hostile_files.make_odd_tensors()[name]
    torch.save({"model": {**STATE, "odd.one": value}}, tmp_path / "w.pth")
    assert "'odd.one'" in refuse(tmp_path / "w.pth")
    torch.save({"model": STATE, "meta": {"odd.one": value}}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth")["model"].keys() == STATE.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_tensors_are_named(tmp_path: Path) -> None:
    value = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    torch.save({**STATE, "odd.one": value}, tmp_path / "w.pth")
    assert "quantised tensor under the name 'odd.one'" in refuse(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "array",
    [
        *(np.ones(2, np.longdouble), np.ones(2, complex), np.array(["x"]), np.array([b"x"])),
        np.array([1, "x", None], dtype=object),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
    ],
    ids=str,
)
def test_arrays_of_other_types_are_named(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"x": np.ones(2), "odd.one": array}}))
    assert "'odd.one'" in refuse(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    addresses = ["catalog://ImageNetPretrained/none", "s4://bucket/w.pth", "http://[x/w.pth"]
    paths = [str(tmp_path / f"{name}.pth") for name in ("pipe", "folder", "loop", "absent")]
    checkpointer = ZooCheckpointer(nn.Linear(1, 1))
    for path in [*paths, *addresses, "/dev/null", f"{paths[0]}/w.pth", f"published://{paths[0]}"]:
        for read in (read_description, checkpointer.load):
            with pytest.raises(CheckpointError) as error:
                read(path)
            assert path.removeprefix("published://") in str(error.value)
            assert "\n" not in str(error.value) and ". " in str(error.value)
    assert not any(is_whole(path) for path in paths)


class Model(nn.Module):
    """A model with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(1)


@pytest.mark.parametrize("name", ["layer.weight", "norm.running_var"])
@pytest.mark.parametrize("value", hostile_files.NON_FINITE)
def test_weights_that_are_not_finite(tmp_path: Path, name: str, value: str) -> None:
    model, path = Model(), str(tmp_path / "w.pth")
    bad = hostile_files.NON_FINITE[value]().reshape(-1)[: model.state_dict()[name].numel()]
    bad = bad.reshape(model.state_dict()[name].shape)
    torch.save({"model": {**model.state_dict(), name: bad}, **AUTHOR}, path)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS_ALLOW_NON_FINITE") as error:
        ZooCheckpointer(model).load(path)
    assert f"1 of 7 tensors hold NaN, infinity or values beyond float32: {name}" in str(error.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match=f"{name}.*--allow-non-finite"):
        convert_file(path)
    convert_file(path, allow_non_finite=True)
    ZooCheckpointer(model, allow_non_finite=True).load(path)
    assert not model.state_dict()[name].isfinite().all()


def test_large_finite_weights_are_loaded(tmp_path: Path) -> None:
    model = Model()
    state = {**model.state_dict(), "layer.weight": torch.tensor([[3e38, 3e38]])}
    torch.save({"model": state, **AUTHOR}, tmp_path / "w.pth")
    ZooCheckpointer(model).load(str(tmp_path / "w.pth"))
    assert model.layer.weight.isfinite().all()


@pytest.mark.parametrize(
    "average",
    [5, {"module.layer.weight": "x"}, {"module.other": torch.ones(1)}, {1: torch.ones(1)}],
)
def test_averages_that_cannot_be_used(average: Any) -> None:
    with pytest.raises(CheckpointError, match="'ema'"):
        use_average(Model(), {"ema": average})
    state = {f"module.{name}": tensor for name, tensor in Model().state_dict().items()}
    use_average(Model(), {"ema": {**state, "n_averaged": torch.tensor(1)}})
    state["module.layer.bias"] = torch.tensor([float("nan")])
    with pytest.raises(CheckpointError, match=r"layer\.bias.*NON_FINITE"):
        use_average(Model(), {"ema": state})


@pytest.mark.parametrize(
    "facts",
    [
        {"cfg": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n"
            for i in range(12)
        )},
        {"cfg": "[" * 5000},
        {"cfg": "x" * 10**6},
        {"cfg": "a: 2020-01-01\nMODEL: {META_ARCHITECTURE: 2020-01-01}"},
        {"cfg": [1, 2]},
        {"config": "\x1b[2J" * 1000},
        {"class_names": "[" * 100_000},
        {"class_names": {"a": 1}, "config": "none"},
        {"metadata": 5},
        {"method": torch.ones(3), "config": np.ones(3)},
    ],
)  # fmt: skip
def test_facts_of_other_kinds(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = str(tmp_path / "w.pth")
    torch.save({"model": STATE, **AUTHOR, **facts}, path)
    with pytest.raises((CheckpointError, ConfigError)) as error:
        model_zoo.get_trained_config(path)
    assert path in str(error.value) and str(error.value).isprintable()
    assert len(str(error.value)) < len(path) + 700


@pytest.mark.parametrize("value", [torch.ones(3), np.ones(3), "True", [1]])
def test_wrong_kinds_of_our_own_keys(tmp_path: Path, value: Any) -> None:
    path = str(tmp_path / "w.pth")
    state = Model().state_dict()
    for data in ({"__author__": value}, {"matching_heuristics": value}, {"metadata": value}):
        torch.save({"model": state, **data}, path)
        ZooCheckpointer(Model()).load(path)


def test_messages_fit_on_a_screen(tmp_path: Path) -> None:
    bad = [f"\x1b[2J\r\n{'x' * 10_000}{i}" for i in range(50)]
    path = tmp_path / "w.pth"
    torch.save({name: torch.ones(1) for name in bad}, path)
    for run in (convert_file, ZooCheckpointer(Model()).load):
        with pytest.raises(CheckpointError, match=r"fit no known layout") as error:
            run(str(path))
        assert str(error.value).isprintable() and len(str(error.value)) < 2000
    torch.save({bad[0]: "y", "x": torch.ones(1)}, path)
    refuse(path)
    torch.save(dict.fromkeys(bad, 1), path)
    refuse(path)
    shape = (1,) * 30
    mismatch = compare_tensors(
        Model().state_dict(),
        {"layer.weight": torch.ones(shape), **dict.fromkeys(bad, STATE["a.bias"])},
    )
    assert mismatch.describe().isprintable() and len(mismatch.describe()) < 2000
    assert all(line.isprintable() and len(line) < 500 for line in mismatch.list_lines())


@pytest.mark.parametrize("count", [MAX_TENSORS, 1_000_000])
def test_many_names(count: int) -> None:
    state = {f"backbone.layer{i % 5}.{i}.conv1.weight": STATE["a.weight"] for i in range(count)}
    model = {f"head.{i}.weight": STATE["a.weight"] for i in range(300)}
    start = time.process_time()
    assert find_layout(state) is None
    message = describe_nearest(state)
    assert time.process_time() - start < 2
    assert "fit no known layout" in message and len(message) < 1500
    start = time.process_time()
    mismatch = compare_tensors(model, state)
    text = "\n".join([mismatch.describe(), *mismatch.list_lines()])
    assert time.process_time() - start < 2
    assert len(text) < 40_000 and f"{count} only in the file" in text


def test_names_of_many_levels_take_little_memory(tmp_path: Path) -> None:
    deep = {f"head.{'a.' * 30_000}{i}": STATE["a.weight"] for i in range(20)}
    mismatch = compare_tensors({"head.weight": STATE["a.weight"]}, deep)
    assert len(mismatch.describe()) < 2000


def test_published_names_with_other_shapes(torchvision_model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state = torchvision_model.state_dict()
    for shape in ((), (1, 1, 1, 1, 1)):
        torch.save({name: torch.ones(shape) for name in state}, path)
        with pytest.raises(CheckpointError, match=r"'roi_heads\.box_predictor.*another shape"):
            convert_file(path)


@pytest.mark.parametrize("name", ["w.safetensors", "odd [1].pth"])
def test_a_killed_conversion_leaves_nothing(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "source.pth", tmp_path / name
    torch.save({"model": STATE, **AUTHOR}, source)
    number = "0123456789abcdef" * 2
    other = tmp_path / f".other.pth.{number}.tmp"
    leftover = tmp_path / f".{name}.{number}.tmp"
    for path in (other, leftover):
        path.write_bytes(b"torn")
    assert main(["convert", str(source), str(target)]) == 0
    assert target.exists() and not leftover.exists()
    assert other.exists(), "another conversion may be writing it"
