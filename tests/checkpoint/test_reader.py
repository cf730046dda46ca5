"""Reading: every format, every kind of broken file, and nothing in a file ever runs."""

import builtins
import collections
import copyreg
import datetime
import io
import os
import pickle
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instancezoo.checkpoint import CheckpointError, read_checkpoint, save_safetensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5])}


def dump(path: Path, data: Any, legacy: bool = False, protocol: int = 2) -> Path:
    """Write as the suffix says."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(data, protocol=protocol))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_state(checkpoint: dict[str, Any]) -> None:
    assert checkpoint["model"].keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert torch.equal(checkpoint["model"][name], tensor)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".PTH"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files(tmp_path: Path, suffix: str, legacy: bool) -> None:
    path = dump(tmp_path / f"w{suffix}", {"model": STATE, "iteration": 7}, legacy)
    checkpoint = read_checkpoint(path)
    assert_state(checkpoint)
    assert checkpoint["iteration"] == 7


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state", "net", "ema", "params_ema"])
def test_weights_are_found_in_wrappers(tmp_path: Path, wrapper: str) -> None:
    assert_state(read_checkpoint(dump(tmp_path / "w.pth", {wrapper: STATE, "epoch": 1})))
    deeper = {"model": {"state_dict": STATE, "kind": "x"}, "epoch": 1}
    checkpoint = read_checkpoint(dump(tmp_path / "deeper.pth", deeper))
    assert_state(checkpoint)
    assert checkpoint["epoch"] == 1 and checkpoint["kind"] == "x"


def test_bare_weights_and_data_parallel_names(tmp_path: Path) -> None:
    assert_state(read_checkpoint(dump(tmp_path / "bare.pth", STATE)))
    wrapped = {f"module.{name}": tensor for name, tensor in STATE.items()}
    assert_state(read_checkpoint(dump(tmp_path / "wrapped.pth", {"state_dict": wrapped})))


def test_the_model_is_preferred_to_its_average(tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    data = {"ema": average, "model": STATE}
    assert_state(read_checkpoint(dump(tmp_path / "w.pth", data)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_of_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    data = {"model": collections.OrderedDict(arrays), "__author__": "someone", "n": np.float64(2)}
    checkpoint = read_checkpoint(dump(tmp_path / "w.pkl", data, protocol=protocol))
    assert_state(checkpoint)
    assert checkpoint["__author__"] == "someone" and checkpoint["n"] == 2


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f2", "i8", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 3)])
def test_arrays_of_all_kinds(
    tmp_path: Path, dtype: str, order: Any, shape: tuple[int, ...]
) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 9, shape), dtype, order=order)
    got = read_checkpoint(dump(tmp_path / "w.pkl", {"model": {"x": array, "y": np.ones(2)}}))
    assert np.array_equal(got["model"]["x"].numpy(), array)
    assert got["model"]["x"].shape == shape


def test_pickle_of_python_2(tmp_path: Path) -> None:
    # what Python 2 wrote for {"model": {"x": numpy.float32([1, -1])}, "__author__": "d2"}
    content = (
        b"\x80\x02}q\x00(U\x05modelq\x01}q\x02U\x01xq\x03cnumpy.core.multiarray\n_reconstruct\n"
        b"q\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06(K\x01K\x02\x85cnumpy\ndtype\n"
        b"U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08\x00\x00\x80?\x00\x00\x80\xbftbsU\n__author__U\x02d2u."
    )
    path = tmp_path / "zoo.pkl"
    path.write_bytes(content)
    checkpoint = read_checkpoint(path)
    assert checkpoint["model"]["x"].tolist() == [1.0, -1.0]
    assert checkpoint["__author__"] == "d2"


def test_caffe2_pickle(tmp_path: Path) -> None:
    blobs = {"conv1_w": np.ones(2), "conv1_w_momentum": np.ones(2), "lr": 0.1}
    checkpoint = read_checkpoint(dump(tmp_path / "w.pkl", {"blobs": blobs, "cfg": "TRAIN: {}"}))
    assert list(checkpoint["model"]) == ["conv1_w"]
    assert checkpoint["matching_heuristics"] and checkpoint["__author__"] == "Caffe2"


def test_safetensors_round_trip(tmp_path: Path) -> None:
    shared = {**STATE, "tied": STATE["a.weight"], "strided": torch.arange(6).reshape(2, 3).T}
    save_safetensors(tmp_path / "w.safetensors", shared, {"config": "x"})
    checkpoint = read_checkpoint(tmp_path / "w.safetensors")
    assert checkpoint["metadata"] == {"config": "x"}
    assert all(torch.equal(checkpoint["model"][name], shared[name]) for name in shared)
    assert not list(tmp_path.glob(".*"))


class HistoryBuffer:
    """Stands for a class of another package in a file's metadata."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values)


@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_metadata_is_dropped(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = {"history": HistoryBuffer([1.0]), "best": np.float32(0.5), "folder": Path("x"), "e": 3}
    meta["date"] = datetime.datetime(2020, 1, 1)
    path = dump(tmp_path / "w.pth", {"state_dict": STATE, "meta": meta}, legacy)
    monkeypatch.delattr(__import__(__name__, fromlist=["x"]), "HistoryBuffer")  # not installed
    checkpoint = read_checkpoint(path)
    assert_state(checkpoint)
    assert checkpoint["meta"] == {"best": 0.5, "e": 3}


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def make_attacks(marker: str) -> dict[str, Any]:
    touch = f"open({marker!r}, 'w').close()"
    saved = io.BytesIO()
    torch.save(Calls(builtins.exec, touch), saved)
    array = np.array([Calls(builtins.exec, touch)], dtype=object)
    return {
        "os.system": Calls(os.system, f"touch {marker}"),
        "open": Calls(builtins.open, marker, "w"),
        "eval": Calls(builtins.eval, touch),
        "exec": Calls(builtins.exec, touch),
        "Popen": Calls(subprocess.Popen, ["touch", marker]),
        "getattr": Calls(builtins.getattr, subprocess.Popen, "mro"),
        "import": Calls(builtins.__import__, "os"),
        "copyreg": Calls(copyreg._reconstructor, subprocess.Popen, object, None),
        "nested": [{"x": (Calls(builtins.exec, touch),)}],
        "state": Calls(collections.OrderedDict, state={"x": Calls(builtins.exec, touch)}),
        "numpy.load": Calls(np.load, marker, "r", True),
        "numpy.fromfile": Calls(np.fromfile, marker),
        "numpy.save": Calls(np.save, marker, np.ones(1)),
        "torch.load": Calls(torch.load, io.BytesIO(saved.getvalue()), None, None),
        "torch.storage": Calls(torch.storage._load_from_bytes, saved.getvalue()),
        "object array": array,
        "method of a class": Calls(Path.touch, Path(marker)),
    }


@pytest.mark.parametrize("attack", make_attacks("x"))
@pytest.mark.parametrize("form", ["zip", "legacy", "pkl"])
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_code_is_refused_and_not_run(tmp_path: Path, attack: str, form: str, place: str) -> None:
    marker = tmp_path / "marker"
    payload = make_attacks(str(marker))[attack]
    path = tmp_path / ("w.pkl" if form == "pkl" else "w.pth")
    state: dict[str, Any] = {"x": np.ones(2)} if form == "pkl" else dict(STATE)
    data = {"model": state, "extra": payload} if place == "beside" else {**state, "y": payload}
    dump(path, data, legacy=form == "legacy")
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as error:
        read_checkpoint(path)
    assert not marker.exists()
    assert "state_dict" in str(error.value), "the message names the remedy"


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\n(U\x05touch.tR.",
        b"(ios\nsystem\nU\x05touch.",  # INST
        b"\x80\x02(cos\nsystem\nU\x05toucho.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",  # STACK_GLOBAL
        # BUILD on the classes that stand in for NumPy's must not change them
        b"\x80\x02cnumpy\nndarray\n(N}U\x05buildU\x01xstb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(N}U\x09_functionU\x01xstb.",
        b"\x80\x02ccollections\nOrderedDict\n(N}U\x05itemsU\x01xstb.",
    ],
)
def test_hand_written_pickles_are_refused(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(program)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_checkpoint(path)
    test_pickle_of_arrays(tmp_path, 2)  # the reader is as it was


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "w.pt")


def test_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_broken_files(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        save_safetensors(whole, STATE)
    else:
        dump(whole, {"model": {n: t.numpy() for n, t in STATE.items()} if "k" in suffix else STATE})
    content = whole.read_bytes()
    path = tmp_path / f"w{suffix}"
    bad = [b"", b"<!DOCTYPE html><html></html>", b"garbage", bytes(300), b"version https://git-lfs"]
    for text in bad + [content[:n] for n in (1, 9, len(content) // 2, len(content) - 1)]:
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match=re.escape(str(path))) as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        read_checkpoint(tmp_path)
    (tmp_path / "w.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(CheckpointError, match=r"'\.jpg'.*\.safetensors"):
        read_checkpoint(tmp_path / "w.jpg")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("data", [[1, 2], {"epoch": 3}, {}, {"model": {}}, {1: torch.ones(1)}])
def test_no_weights_in_the_file(tmp_path: Path, data: Any) -> None:
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_checkpoint(dump(tmp_path / "w.pth", data))


def test_no_tensor_under_a_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'note'"):
        read_checkpoint(dump(tmp_path / "w.pth", {**STATE, "note": "x"}))
