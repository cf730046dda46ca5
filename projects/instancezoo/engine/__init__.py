"""Training: one trainer for every method."""

from instancezoo.engine.launch import launch
from instancezoo.engine.trainer import Trainer

__all__ = ["Trainer", "launch"]
