"""What stops a run, in one line: dead loaders, full disks, checkpoints of other settings."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from instancezoo.checkpoint.reader import read_checkpoint
from instancezoo.engine.stop import Interrupted
from instancezoo.errors import ZooError, first_line
from instancezoo.files import describe_os_error

MOST_KEYS = 6  # of different settings in a message


class LoaderDiedError(ZooError):
    """A process that loads images was killed."""


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process after an error that the user can fix, or a signal, with one line.

    Raises:
        SystemExit: with the line; after a signal with its exit code, the line printed.
    """
    try:
        yield
    except Interrupted as stop:
        message = stop.message
        if message is None:
            message = f"stopped by {signal.Signals(stop.signum).name}"
        if message:
            print(message, file=sys.stderr)
        sys.exit(stop.exit_code)
    except ZooError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {describe_os_error(error)}")
    except RuntimeError as error:  # of another loader, while the first one's death was reported
        cause = find_cause(error)
        if cause is error:
            raise
        sys.exit(f"error: {cause}")


def find_cause(error: Exception) -> Exception:
    """Find what an error in training comes from: `LoaderDiedError`, or the error itself."""
    if isinstance(error, ConnectionError | EOFError):  # a loader's? torch tells in a moment
        try:
            time.sleep(1.0)
        except RuntimeError as told:
            error = told
    text = first_line(error)
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
        return LoaderDiedError(
            f"a process that loads images ended: {text} Usually memory has run out: lower "
            "DATALOADER.NUM_WORKERS or make room, then continue with --resume"
        )
    return error


def describe_other_optimizer(path: str, cfg: Any, error: Exception) -> str:
    """Describe why training cannot resume from a checkpoint, and what to do.

    Args:
        path: the checkpoint.
        cfg: the config that was to resume it.
        error: what its optimizer's state and the optimizer disagree on.
    """
    then = _flatten(yaml.safe_load(str(read_checkpoint(path).get("cfg", ""))) or {})
    now = _flatten(yaml.safe_load(cfg.dump()))
    changed = [
        f"{key} was {then[key]}, is {now[key]}"
        for key in sorted(then.keys() & now.keys())
        if then[key] != now[key] and key.startswith(("MODEL.", "SOLVER.")) and key not in _FREE
    ]
    why = "; ".join(changed[:MOST_KEYS]) or first_line(error)
    return (
        f"{path} cannot be resumed: its optimizer differs from this config's ({why}). Resume with "
        "the settings of its run, or start a new run from its weights: MODEL.WEIGHTS "
        f"{path}, another OUTPUT_DIR and no --resume"
    )


_FREE = ("MODEL.WEIGHTS", "MODEL.DEVICE", "SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.BASE_LR")


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Full key -> value of nested sections."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
