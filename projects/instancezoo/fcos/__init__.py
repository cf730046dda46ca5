"""FCOS; importing it registers the detector and its proposal generator."""

from . import convert  # noqa: F401  (registers the layouts of published checkpoints)
from .config import add_fcos_config
from .detector import FCOS as FCOSDetector
from .detector import OneStageDetector
from .fcos import FCOS

__all__ = ["FCOS", "FCOSDetector", "OneStageDetector", "add_fcos_config"]
