"""Start of a command: no warnings that no user can act on, and threads that wait quietly."""

from __future__ import annotations

import logging
import os
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
    # A log file on a full disk would give a traceback for each line; the run itself tells it once.
    logging.raiseExceptions = False


def wait_passively() -> None:
    """Let torch's idle threads sleep instead of spin, unless the user has chosen how they wait.

    Beside other busy processes a spinning thread takes the core that the next one needs. For
    commands, before they import torch, which reads the environment once.
    """
    chosen = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    if not any(name in os.environ for name in chosen):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
