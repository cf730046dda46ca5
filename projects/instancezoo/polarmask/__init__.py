"""PolarMask; importing it registers the method."""

from . import convert  # noqa: F401  (registers the layouts of published checkpoints)
from .config import add_polarmask_config, translate_polarmask_keys
from .mapper import PolarMaskMapper
from .polarmask import PolarMask

__all__ = ["PolarMask", "PolarMaskMapper", "add_polarmask_config", "translate_polarmask_keys"]
