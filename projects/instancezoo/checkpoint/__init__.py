"""Checkpoints: safe reading, recognition and conversion of published files, atomic saving."""

from . import published  # noqa: F401  (registers the prefix published://)
from .checkpointer import ZooCheckpointer, save_safetensors
from .classes import ClassList, compare_classes
from .convert import Converted, convert_state_dict
from .description import Description, read_description
from .reader import CheckpointError, read_checkpoint
from .rename import Layout

__all__ = [
    "CheckpointError",
    "ClassList",
    "Converted",
    "Description",
    "Layout",
    "ZooCheckpointer",
    "compare_classes",
    "convert_state_dict",
    "read_checkpoint",
    "read_description",
    "save_safetensors",
]
