"""Checkpoints: safe reading, recognition and conversion of published files, atomic saving."""

from . import published  # noqa: F401  (registers the prefix published://)
from .checkpointer import ZooCheckpointer, save_safetensors
from .convert import Converted, convert_state_dict
from .reader import CheckpointError, read_checkpoint
from .rename import Layout

__all__ = [
    "CheckpointError",
    "Converted",
    "Layout",
    "ZooCheckpointer",
    "convert_state_dict",
    "read_checkpoint",
    "save_safetensors",
]
