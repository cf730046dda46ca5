"""Reads a parity fixture and compares with it at the tolerance that it states itself."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
# What the grid family's fixtures state as tolerance, in numbers; `check_stated` checks the words.
INTERMEDIATE, SCORES, LOSSES, MASK_PIXELS = 2e-4, 1e-4, 1e-4, 2e-3


def _load_seeded_weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded_weights", GOLDEN / "seeded_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


seeded_weights = _load_seeded_weights()


@dataclass(frozen=True)
class Fixture:
    """One folder of `tests/golden`."""

    name: str
    spec: dict[str, Any]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / self.name / "arrays.npz") as file:
            return dict(file)

    @property
    def array_names(self) -> set[str]:
        return set(self.arrays)

    @property
    def method(self) -> str:
        return self.spec["method"]

    def make_state(self) -> dict[str, Tensor]:
        """The published checkpoint, under its published names."""
        state = seeded_weights.seeded_state_dict(
            self.spec["shapes"], self.spec["seed"], self.spec["overrides"]
        )
        return {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}

    def check_stated(self, expected: dict[str, Any]) -> None:
        """The fixture states the tolerances that a check uses: a number, or words that name it."""
        stated = self.spec["tolerance"]
        for name, value in expected.items():
            found = value in stated[name] if isinstance(value, str) else value == stated[name]
            assert found, f"{self.name} states another tolerance for {name}: {stated[name]}"

    def unpack(self, name: str, width: int) -> np.ndarray:
        """A bool array that was stored by `np.packbits(axis=-1)`."""
        return np.unpackbits(self.arrays[name], axis=-1)[..., :width].astype(bool)

    def unpack_masks(self, name: str, height: int, width: int) -> np.ndarray:
        """Bool (M, height, width) of masks that were stored as one row of bits each, or in all."""
        bits, pixels = np.unpackbits(self.arrays[name], axis=-1), height * width
        whole = bits.shape[-1] // pixels * pixels
        return bits[..., :whole].reshape(-1, height, width).astype(bool)

    def check_map(self, name: str, got: Tensor) -> None:
        """An intermediate array: largest error against the size of its values."""
        expected = self.arrays[name]
        found = got.detach().float().cpu().numpy()
        assert found.shape == expected.shape, name
        error = np.abs(found - expected).max(initial=0)
        limit = INTERMEDIATE * (1 + np.abs(expected).max(initial=0))
        assert error <= limit, f"{name} differs by {error:.3g}, allowed are {limit:.3g}"

    def check_scores(self, name: str, got: Tensor) -> None:
        """Scores, in their stored order."""
        np.testing.assert_allclose(
            got.detach().numpy(), self.arrays[name], rtol=0, atol=SCORES, err_msg=name
        )

    def check_exact(self, name: str, got: Tensor | np.ndarray) -> None:
        """Integers."""
        np.testing.assert_array_equal(np.asarray(got), self.arrays[name], err_msg=name)

    def check_loss(self, name: str, got: Tensor) -> None:
        """A loss, relatively."""
        np.testing.assert_allclose(
            got.item(), self.arrays[name].item(), rtol=LOSSES, atol=0, err_msg=name
        )


def list_fixtures() -> list[str]:
    """Names of the folders in `tests/golden`."""
    return sorted(path.parent.name for path in GOLDEN.glob("*/spec.json"))


def read_fixture(name: str) -> Fixture:
    """Read `tests/golden/<name>`."""
    return Fixture(name, json.loads((GOLDEN / name / "spec.json").read_text()))
