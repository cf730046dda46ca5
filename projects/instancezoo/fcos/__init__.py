"""FCOS; importing it registers the detector and its proposal generator."""

from . import convert  # noqa: F401  (registers the layouts of published checkpoints)
from .config import add_fcos_config, translate_fcos_keys
from .detector import FCOS, OneStageDetector
from .fcos import FCOSProposals

__all__ = ["FCOS", "FCOSProposals", "OneStageDetector", "add_fcos_config", "translate_fcos_keys"]
