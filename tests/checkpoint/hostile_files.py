"""Checkpoint files that no training writes: made by hand, opcode by opcode or entry by entry."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def write_archive(path: Path, program: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """A file in torch's archive format whose pickle is `program`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", program)
        archive.writestr("w/byteorder", "little")
        for key, content in (storages or {}).items():
            archive.writestr(f"w/data/{key}", content)
    return path


def write_program(path: Path, program: bytes) -> Path:
    """A file of one pickle, in the format that its suffix says."""
    if path.suffix != ".pkl":
        return write_archive(path, program)
    path.write_bytes(program)
    return path


def write_safetensors(
    path: Path, header: Mapping[str, Any] | bytes, content: bytes, length: int | None = None
) -> Path:
    """A `.safetensors` file with any header; `length` is what it says of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + content)
    return path


def make_tensor_program(
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    num_stored: int = 4,
) -> bytes:
    """The pickle of {"x": float32 tensor over storage "0"} with any numbers."""

    def push(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]  # without PROTO and STOP

    storage = push("storage") + b"ctorch\nFloatStorage\n" + push("0") + push("cpu")
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + push(num_stored) + b"tQ"
    tensor += push(offset) + push(size) + push(stride) + b"\x89"
    return b"\x80\x02}" + push("x") + tensor + b"ccollections\nOrderedDict\n)RtRs."


def multiply(kind: str, levels: int = 40, width: int = 2) -> bytes:
    """Opcodes that push containers of which each holds the one before it several times.

    Args:
        kind: "list", "tuple", "dict", or "weights" for dicts with the keys of training scripts.
        levels: number of containers, up to 255.
        width: of each container.
    """
    program = b"]q\x00"
    for level in range(levels):
        get = b"h" + bytes([level])
        items = {
            "list": b"](" + get * width + b"e",
            "tuple": b"(" + get * width + b"t",
            "dict": b"}(" + b"".join(b"K" + bytes([n]) + get for n in range(width)) + b"u",
            "weights": b"}(X\x05\0\0\0model" + get + b"X\x03\0\0\0net" + get + b"u",
        }[kind]
        program += b"0" + items + b"q" + bytes([level + 1])
    return program


MULTIPLYING = {
    **{
        f"{kind} beside the weights": b"\x80\x02}(X\x01\0\0\0y" + multiply(kind) + b"u."
        for kind in ("list", "tuple", "dict", "weights")
    },
    **{
        f"{kind} as the content": b"\x80\x02" + multiply(kind) + b"."
        for kind in ("list", "tuple", "dict", "weights")
    },
    "tuple as a key": b"\x80\x02}" + multiply("tuple") + b"K\x01s.",
    "tuple as a key of several": b"\x80\x02}(" + multiply("tuple") + b"K\x01u.",
    "tuple in a set": b"\x80\x04\x8f(" + multiply("tuple") + b"\x90.",
    "tuple in a frozen set": b"\x80\x04(" + multiply("tuple") + b"\x91.",
    "tuple in a called set": b"\x80\x02cbuiltins\nset\n(](" + multiply("tuple") + b"etR.",
    "tuple as a key in pairs": (
        b"\x80\x02ccollections\nOrderedDict\n(](](" + multiply("tuple") + b"K\x01eetR."
    ),
    "dict of the old opcode": b"\x80\x02(" + multiply("tuple") + b"K\x01d.",
}
PROGRAMS = {
    "deep lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 50_000 + b".",
    "deep dicts": b"\x80\x02" + b"}K\x00" * 20_000 + b"}" + b"s" * 20_000 + b".",
    "list in itself": b"\x80\x02]q\x00h\x00a.",
    "dict in itself": b"\x80\x02}q\x00X\x05\0\0\0modelh\x00s.",
    "tuple in its list": b"\x80\x02]q\x00h\x00\x85a.",
    "huge memo index": b"\x80\x02}r\xff\xff\xff\x7f.",
    "huge memo index in text": b"\x80\x02}p99999999999999999999\n.",
    "absent memo index": b"\x80\x02j\xff\xff\xff\x7f.",
    "huge text": b"\x80\x04}\x8d\xff\xff\xff\xff\xff\x00\x00\x00x.",
    "huge bytes": b"\x80\x04}\x8e\xff\xff\xff\xff\xff\x00\x00\x00x.",
    "huge byte array": b"\x80\x05\x96\xff\xff\xff\xff\x0f\x00\x00\x00x.",
    "huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\x00\x00\x00}.",
    "huge number": b"\x80\x02}X\x01\0\0\0n\x8b\x00\x00\x01\x00" + b"\x7f" * 65_536 + b"s.",
    "called byte array": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\xff\xff\xff\xff\x7f\x85R.",
    "called tensor": b"\x80\x02ctorch\nTensor\n\x8a\x05\xff\xff\xff\xff\x7f\x85R.",
    "class of an extension": b"\x80\x02\x82\x01.",
    "no stop": b"\x80\x02}",
    "only a stop": b".",
    "odd items": b"\x80\x02}(K\x01u.",
    "key that is a list": b"\x80\x02}]K\x01s.",
    "patched dict": (
        b"\x80\x02ccollections\nOrderedDict\n)R}(X\x05\0\0\0itemsK\x01X\x03\0\0\0getK\x01ub."
    ),
    "patched list": b"\x80\x02]}X\x06\0\0\0appendK\x01sb.",
    "patched function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x05\0\0\0buildK\x01stb.",
    "dtype called": b"\x80\x02ctorch\nfloat32\n)R.",
    "dtype changed": b"\x80\x02ctorch\nfloat32\n}X\x08\0\0\0itemsizeK\x01sb.",
    "persistent text": b"\x80\x02Px\n.",
    "persistent list": b"\x80\x02]Q.",
    "whole module": b"\x80\x02(X\x06\0\0\0moduleNNNtQ.",
    "encoded by lists": b"\x80\x02c_codecs\nencode\n" + multiply("list") + b"h\x01\x86R.",
    "array type of lists": b"\x80\x02cnumpy\ndtype\n" + multiply("list") + b"\x85R.",
    "many class names": b"\x80\x02" + b"".join(b"cx\nn%d\n0" % n for n in range(20_000)) + b"}.",
}


def make_odd_tensors() -> dict[str, Any]:
    """Values that a state dict may hold but a model cannot load."""
    with warnings.catch_warnings(action="ignore"):  # they are in a beta state
        sparse_rows = torch.eye(2).to_sparse_csr()
    return {
        "complex": torch.ones(2, dtype=torch.complex64),
        "sparse": torch.eye(2).to_sparse(),
        "sparse rows": sparse_rows,
        "meta": torch.empty(2, device="meta"),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "text": "x",
        "none": None,
        "list": [1.0, 2.0],
        "huge integer": 2**70,
    }


NON_FINITE: dict[str, Callable[[], torch.Tensor]] = {
    "nan": lambda: torch.tensor([[float("nan"), 1.0]]),
    "inf": lambda: torch.tensor([[float("inf"), 1.0]]),
    "both infinities": lambda: torch.tensor([[float("-inf"), float("inf")]]),
    "float64 beyond float32": lambda: torch.tensor([[1e300, 1.0]], dtype=torch.float64),
    "half nan": lambda: torch.tensor([[float("nan"), 0.0]], dtype=torch.bfloat16),
}
