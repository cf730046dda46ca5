"""Training: one trainer for every method."""

from instancezoo.engine.failures import errors_in_one_line
from instancezoo.engine.launch import launch
from instancezoo.engine.trainer import Trainer

__all__ = ["Trainer", "errors_in_one_line", "launch"]
