"""Seeded makers of hostile checkpoint files; each takes a generator and a path without suffix."""

import io
import json
import os
import pickle
import pickletools
import random
import string
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.checkpoint import hostile_files
from torch import nn

from instancezoo.checkpoint import save_safetensors

NUM_CASES = int(os.environ.get("FUZZ_CASES", "60"))
IS_LONG = NUM_CASES > 200  # the largest files are made only in long runs
STATE = {
    "backbone.conv.weight": torch.arange(8.0).reshape(2, 4),
    "backbone.conv.bias": torch.ones(2),
    "backbone.norm.num_batches_tracked": torch.tensor(3),
    "head.weight": torch.ones(3, 2, 1, 1),
}
ODD_INTS = (-(2**70), -(2**31), -1, 0, 1, 2, 255, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 10**400)
ODD_VALUES: list[Any] = [
    *(None, True, -1, 2**70, 1.5, float("nan"), 1j, "x", "\x1b[2J\n", b"x", [], {}, (), [[]]),
    *({"a": 1}, {1: 2}, ["a", 1], [1, 2, 3], ("a", ("b",)), {"a": {"b": {}}}, "[" * 50_000),
    *("[1, 2]", '{"a": 1}', "MODEL: 5", "MODEL: {META_ARCHITECTURE: X}", "&a [*a]"),
    *("InstanceZoo", "backbone", "mask_rcnn/mask_rcnn_tiny", "y" * 300_000),
    *(np.ones(2), np.ones(2, np.longdouble), np.array(["x"], dtype=object), np.float64(2)),
    *(torch.ones(2), torch.ones(1).expand(10**10), torch.eye(2).to_sparse()),
    *("x: &x {y: *x}", nn.Parameter(torch.ones(1)), torch.ones(2, device="meta")),
]  # fmt: skip
KEYS = (
    *("model", "state_dict", "ema", "net", "blobs", "__author__", "matching_heuristics"),
    *("metadata", "method", "config", "cfg", "class_names", "category_ids", "iteration", "trainer"),
)
PLACES = ([0, 8], [0, 8], [8, 0], [0, 2**62], [-1, 8], [])  # of a tensor in the file


def mutate_bytes(rng: random.Random, stem: Path) -> Path:
    """A good file with a few wrong bytes, or torn."""
    path = write_good(rng, stem, {"model": STATE, "__author__": "InstanceZoo"})
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(content))
        action = rng.choice(["replace", "replace", "high", "insert", "cut", "repeat"])
        if action == "replace":
            content[at] = rng.randrange(256)
        elif action == "high":
            content[at : at + 4] = b"\xff\xff\xff\x7f"
        elif action == "insert":
            content[at:at] = rng.randbytes(rng.randint(1, 9))
        elif action == "repeat":
            content[at:at] = content[at : at + rng.randint(1, 99)]
        elif rng.random() < 0.3:
            del content[at + 1 :]
    path.write_bytes(content)
    return path


def mutate_program(rng: random.Random, stem: Path) -> Path:
    """A good archive whose pickle has other opcodes and arguments."""
    buffer = io.BytesIO()
    torch.save({"model": OrderedDict(STATE), "iteration": 3, "note": ["x", (1.5, None)]}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    program = entries["data.pkl"]
    starts = [position for _, _, position in pickletools.genops(program)]
    steps = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(steps))
        action = rng.choice(["number", "number", "drop", "repeat", "move", "random"])
        if action == "number":
            numbers = [i for i, step in enumerate(steps) if step[:1] in b"KMJ"]
            steps[rng.choice(numbers or [at])] = push_int(rng.choice(ODD_INTS))
        elif action == "drop":
            steps[at] = b""
        elif action == "repeat":
            steps[at] *= rng.choice([2, 3, 1000])
        elif action == "move":
            steps[at] = rng.choice(steps)
        else:
            steps[at] = make_step(rng)
    path = stem.with_suffix(".pth")
    storages = {name[5:]: content for name, content in entries.items() if name.startswith("data/")}
    return hostile_files.write_archive(path, b"".join(steps), storages)


def push_int(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def make_step(rng: random.Random) -> bytes:
    """Any opcode with a plausible argument."""
    code = rng.choice(pickletools.opcodes)
    length = 0 if code.arg is None else code.arg.n
    if length >= 0:
        return code.code.encode("latin1") + bytes(rng.choices((0, 1, 2, 3, 255), k=length))
    if length == pickletools.UP_TO_NEWLINE:
        names = ("1", "0", "x y", "os\nsystem", "builtins\nset", "torch\nSize", "numpy\ndtype")
        return code.code.encode("latin1") + rng.choice(names).encode() + b"\n"
    size = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(
        length, 4
    )
    count = rng.choice((0, 1, 3, 3, 2 ** (8 * size) - 1))
    return code.code.encode("latin1") + count.to_bytes(size, "little") + b"abc"[:count]


def make_random_program(rng: random.Random, stem: Path) -> Path:
    """Random opcodes."""
    program = b"\x80\x02}" + b"".join(make_step(rng) for _ in range(rng.randint(1, 60))) + b"."
    return hostile_files.write_program(stem.with_suffix(rng.choice([".pkl", ".pth"])), program)


def multiply_containers(rng: random.Random, stem: Path) -> Path:
    """Containers that hold one another many times, at any place of the content."""
    levels, width = rng.choice([(4, 2), (12, 3), (40, 2), (200, 2), (200, 1), (3, 200)])
    kind = rng.choice(["list", "tuple", "dict", "weights"])
    value = hostile_files.multiply(kind, levels, width)
    key = rng.choice(KEYS)
    name = b"X" + len(key).to_bytes(4, "little") + key.encode()
    program = rng.choice(
        [
            value,
            b"}" + name + value + b"s",
            b"}(" + name + value + b"u",
            b"}" + value + b"Ns",
            b"]" + value + b"a",
            b"\x8f(" + value + b"\x90",
            b"(" + value + b"\x91",
            b"(" + value + b"Nd",
            b"ccollections\nOrderedDict\n(" + value + b"tR",
            b"ctorch\nSize\n(" + value + b"tR",
            b"cbuiltins\nset\n(" + value + b"tR",
            b"cnumpy\ndtype\n(" + value + b"tR" + value + b"b",
            b"cpathlib\nPosixPath\n(" + value + b"tR",
            b"ctorch._utils\n_rebuild_parameter\n(" + value + b"\x89NtR",
            value + b"Q",
        ]
    )
    suffix = rng.choice([".pkl", ".pth"])
    return hostile_files.write_program(stem.with_suffix(suffix), b"\x80\x04" + program + b".")


def repeat_steps(rng: random.Random, stem: Path) -> Path:
    """One step, or two, very often."""
    step = rng.choice(
        [
            *(
                b"]",
                b"}",
                b"(",
                b"\x8f",
                b")",
                b"K\x01",
                b"J\x01\x02\x03\x04",
                b"N2",
                b"]a",
                b"]\x94",
            ),
            *(
                b"\x85",
                b"}K\x00",
                b"(t",
                b"cx\ny\n",
                b"c_codecs\nencode\n",
                b"h\x00",
                b"]2e",
                b"((d",
            ),
            *(b"ccollections\nOrderedDict\n)R", b"G" + bytes(8), b"X\x01\0\0\0x", b"\x94h\x00"),
        ]
    )
    program = b"\x80\x04]q\x00" + step * rng.choice(
        [10, 1000, 100_000, 1_000_000 if IS_LONG else 100]
    )
    suffix = rng.choice([".pkl", ".pth"])
    return hostile_files.write_program(stem.with_suffix(suffix), program + b".")


def copy_texts(rng: random.Random, stem: Path) -> Path:
    """A long text that many calls copy."""
    size, count = rng.choice([(10**6, 10**4), (10**5, 10**5 if IS_LONG else 100), (10, 10**4)])
    text = b"X" + size.to_bytes(4, "little") + b"a" * size + b"q\x01"
    call = rng.choice(
        [
            b"c_codecs\nencode\n(h\x01X\x06\0\0\0latin1tR",
            b"cbuiltins\nbytearray\n(h\x01X\x06\0\0\0latin1tR",
            b"ccollections\nOrderedDict\n(](h\x01h\x01eetR",
            b"h\x01",
            b"]h\x01a",
            b"h\x01\x85",
        ]
    )
    program = b"\x80\x02}X\x05\0\0\0model](" + text + call * count + b"es."
    suffix = rng.choice([".pkl", ".pth"])
    return hostile_files.write_program(stem.with_suffix(suffix), program)


def mutate_tensor(rng: random.Random, stem: Path) -> Path:
    """A tensor with any shape, stride, offset and storage."""
    ndim = rng.randint(0, 4)
    numbers = (*ODD_INTS, 1, 1, 2, 2, 10**10)
    size, stride = (tuple(rng.choices(numbers, k=ndim)) for _ in range(2))
    stride = stride[: rng.choice([ndim, ndim, 1])]
    offset, num_stored = rng.choice((0, 0, *ODD_INTS)), rng.choice((4, 10**10))
    program = hostile_files.make_tensor_program(size, stride, offset, num_stored)
    stored = {rng.choice("0001"): bytes(rng.choice([0, 3, 16, 4096]))}
    return hostile_files.write_archive(stem.with_suffix(".pth"), program, stored)


def bomb(rng: random.Random, stem: Path) -> Path:
    """An archive whose entries are compressed, repeated or lie about their size."""
    path = stem.with_suffix(".pth")
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    size = (
        rng.choice([10, 10**6, 10**8 if IS_LONG else 10**4])
        if method != zipfile.ZIP_STORED
        else 10**5
    )
    program = hostile_files.make_tensor_program((size // 4,), (1,), 0, size // 4)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(
            rng.choice(["w/data.pkl", "w/data.pkl", "data.pkl", "x/y/data.pkl"]), program
        )
        archive.writestr("w/data/0", bytes(size))
        for index in range(rng.choice([0, 3, 30_000 if IS_LONG else 30])):
            archive.writestr(f"w/data/{index + 1}", b"")
    content = bytearray(path.read_bytes())
    if rng.random() < 0.6:  # sizes, positions and names in the directory
        find = rng.choice([content.index, content.rindex])
        at = find(b"PK\x01\x02") + rng.choice([10, 20, 24, 28, 42])
        sizes = (0, 1, 255, 2**31 - 1, 2**31, rng.randrange(2**32))
        content[at : at + 4] = rng.choice(sizes).to_bytes(4, "little")
        path.write_bytes(content)
    return path


def mutate_header(rng: random.Random, stem: Path) -> Path:
    """A `.safetensors` file with any header."""
    header: dict[str, Any] = {}
    for index in range(rng.choice([0, 1, 3, 100, 20_000 if IS_LONG else 2])):
        header[rng.choice(["x", "\x1b[2J", "backbone.conv.weight", f"n{index}"])] = {
            "dtype": rng.choice(["F32", "F32", "F64", "I8", "C64", "F8_E5M2", "F4", "X", 5]),
            "shape": rng.choice([[2], [2], [], [0], [*ODD_INTS[:12]], [2**62, 4], [-1], None, "x"]),
            "data_offsets": rng.choice([*PLACES, [8 * index, 8 * index + 8]]),
        }
    if rng.random() < 0.5:
        texts = [value for value in ODD_VALUES if isinstance(value, str)]
        header["__metadata__"] = {key: rng.choice(texts) for key in rng.sample(KEYS, 4)}
        header["__metadata__"]["__author__"] = "InstanceZoo"
    text: bytes = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = rng.choice([b"[" * 10**6, b'{"a":' * 10**5, b"{" + b" " * 10**6 + b"}", text[:-3]])
    length = None if rng.random() < 0.8 else rng.choice([0, 1, 60, 2**31, 2**63])
    content = bytes(rng.choice([0, 7, 8, 8, 8 * len(header)]))
    return hostile_files.write_safetensors(stem.with_suffix(".safetensors"), text, content, length)


def name_oddly(rng: random.Random, stem: Path) -> Path:
    """Many, long, deep or unprintable names."""
    count = rng.choice([1, 50, 500, *([25_000, 100_000] if IS_LONG else [])])
    length = 8 if count > 10**4 else rng.choice([3, 40, 40_000 // count + 1, 400_000 // count + 1])
    signs = rng.choice(
        [string.ascii_letters, ".", "a.", "\x1b\n\r\0\u202e\ud800", "é漢", "res2.0conv"]
    )
    prefix = rng.choice(
        ["", "module.", "backbone.", "backbone.layer1.0.conv1.", "stem.conv", "roi_heads."]
    )
    tensor = torch.ones(rng.choice([(), (1,), (2, 2), (1,) * 20]))
    state = {f"{prefix}{''.join(rng.choices(signs, k=length))}{i}": tensor for i in range(count)}
    state |= {name: tensor for name in STATE if rng.random() < 0.5}
    return write_good(rng, stem, {"model": state, "__author__": rng.choice(["x", "InstanceZoo"])})


def choose_values(rng: random.Random, stem: Path) -> Path:
    """Values of other kinds among the weights, and under the keys that are read."""
    data: dict[Any, Any] = {"model": dict(STATE), "__author__": "InstanceZoo"}
    for _ in range(rng.randint(0, 3)):
        value = rng.choice([*ODD_VALUES, *(make() for make in hostile_files.NON_FINITE.values())])
        data["model"][rng.choice([*STATE, "new", "module.x"])] = value
    for _ in range(rng.randint(0, 4)):
        data[rng.choice([*KEYS, 5, None, ("a", 1), "\x1b[2J"])] = rng.choice(ODD_VALUES)
    if rng.random() < 0.3:
        data = {rng.choice(KEYS): data, rng.choice(KEYS): rng.choice([data, {}, STATE])}
    if rng.random() < 0.1:
        data["self"] = data
    if rng.random() < 0.2:
        torch.save(Patched(data), path := stem.with_suffix(".pth"))
        return path
    return write_good(rng, stem, data)


class Patched:
    """Pickles as an `OrderedDict` with other methods."""

    def __init__(self, data: dict[Any, Any]) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        methods = {"items": 5, "keys": None, "get": "x", "_metadata": {"": {"version": 1}}}
        return OrderedDict, (), methods, None, iter(self.data.items())


def write_good(rng: random.Random, stem: Path, data: dict[str, Any]) -> Path:
    """Write a checkpoint in any format that takes its values."""
    suffix = rng.choice([".pth", ".pt", ".pyth", ".pkl", ".safetensors", "legacy"])
    path = stem.with_suffix(".pth" if suffix == "legacy" else suffix)
    try:
        if suffix == ".safetensors":
            save_safetensors(path, data["model"], {"__author__": "InstanceZoo"})
        elif suffix == ".pkl":
            arrays = {name: as_array(value) for name, value in data["model"].items()}
            content = pickle.dumps({**data, "model": arrays}, protocol=rng.randint(0, 5))
            path.write_bytes(content)
        else:
            torch.save(data, path, _use_new_zipfile_serialization=suffix != "legacy")
    except Exception:  # the format does not take them
        path = stem.with_suffix(".pth")
        torch.save(data, path)
    return path


def as_array(value: Any) -> Any:
    is_plain = isinstance(value, torch.Tensor) and value.numel() < 99
    return value.detach().numpy() if is_plain else value


def write_untouched(rng: random.Random, stem: Path) -> Path:
    """A good file."""
    return write_good(rng, stem, {"model": STATE, "__author__": "InstanceZoo", "iteration": 3})


KINDS: dict[str, Callable[[random.Random, Path], Path]] = {
    make.__name__: make
    for make in (
        *(mutate_bytes, mutate_program, make_random_program, multiply_containers, repeat_steps),
        *(copy_texts, mutate_tensor, bomb, mutate_header, name_oddly, choose_values),
        write_untouched,
    )
}
