"""SOLOv2; importing it registers the method."""

from . import convert  # noqa: F401  (registers the layouts of published checkpoints)
from .config import add_solov2_config
from .solov2 import SOLOv2

__all__ = ["SOLOv2", "add_solov2_config"]
