"""InstanceZoo: every classic instance-segmentation method on Detectron2."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["get_cfg", "model_zoo"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import instancezoo` costs nothing and no import runs in a circle.
    if name == "get_cfg":
        return import_module("instancezoo.config").get_cfg
    if name == "model_zoo":
        return import_module("instancezoo.model_zoo")
    raise AttributeError(f"module 'instancezoo' has no attribute {name!r}")
