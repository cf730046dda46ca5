"""Checkpoints: safe reading, recognition and conversion of published files, atomic saving."""

from . import layouts  # noqa: F401  (registers the layouts that belong to no method's folder)
from .checkpointer import ZooCheckpointer
from .convert import Converted, convert_state_dict, register_layout
from .reader import CheckpointError, read_checkpoint
from .rename import Layout
from .tensors import save_safetensors

__all__ = [
    "CheckpointError",
    "Converted",
    "Layout",
    "ZooCheckpointer",
    "convert_state_dict",
    "read_checkpoint",
    "register_layout",
    "save_safetensors",
]
