"""Where double precision exists."""

from __future__ import annotations

import torch

WITHOUT_DOUBLE = ("mps",)


def find_double_device(device: torch.device) -> torch.device:
    """Device for computations in fp64: the given one, or the CPU if it has no such type ("mps").

    Results go back by `.to(device)`, which costs nothing where the device is the same.
    """
    return torch.device("cpu") if device.type in WITHOUT_DOUBLE else device
