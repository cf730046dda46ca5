"""The classes of the data that a model is trained or evaluated on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from instancezoo.checkpoint.classes import UNKNOWN, ClassList, show_classes
from instancezoo.data import DatasetError, load_metadata
from instancezoo.errors import ConfigError


def find_classes(dataset_names: Sequence[str]) -> ClassList:
    """Find the classes that data sets share; none if there is no data set, or if it has no names.

    Args:
        dataset_names: registered data sets with the same classes.
    """
    if not dataset_names:
        return UNKNOWN
    try:
        return ClassList.from_metadata(load_metadata(dataset_names[0]))
    except DatasetError:  # registered by a caller without class names
        return UNKNOWN


def check_room_for(classes: ClassList, model: nn.Module) -> None:
    """Raise `ConfigError` if no part of a model has as many classes as its training data."""
    numbers = [getattr(part, "num_classes", None) for part in model.modules()]
    most = max((number for number in numbers if isinstance(number, int)), default=None)
    if most is not None and most < len(classes.names):
        raise ConfigError(
            f"the model has {most} classes, but DATASETS.TRAIN has {show_classes(classes.names)}: "
            "read the config by instancezoo.config.load_cfg, as train_net.py does, or set "
            "DATASETS.NUM_CLASSES"
        )
