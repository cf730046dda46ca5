"""SOLO and Decoupled SOLO; importing it registers both."""

from . import convert  # noqa: F401  (registers the layouts of published checkpoints)
from .config import add_solo_config
from .solo import SOLO, DecoupledSOLO

__all__ = ["SOLO", "DecoupledSOLO", "add_solo_config"]
