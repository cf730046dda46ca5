"""Suppression of warnings that no user can act on."""

from __future__ import annotations

import logging
import warnings

# Detectron2 calls torch in ways that are deprecated or slower than necessary, but correct.
_HARMLESS = (
    "The given NumPy array is not writable",
    "torch.meshgrid: in an upcoming release",
    r"`torch\.jit\.script",
)


def silence_dependencies() -> None:
    """Hide harmless warnings of Detectron2 and torch, in this process and its loaders'.

    For commands, before they import Detectron2: the import already warns. Library code leaves its
    users' filters unchanged.
    """
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
