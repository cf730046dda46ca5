"""A mapper that finds the borders of masks in the loader's processes."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from instancezoo.data.mappers import MAPPER_REGISTRY, InstanceMapper
from instancezoo.layers.borders import find_borders
from instancezoo.modeling.objects import select_objects


class PolarMaskMapper(InstanceMapper):
    """`InstanceMapper` that also gives training `instances` their `gt_borders`.

    Without them the model finds the same borders itself. Set it where a GPU waits for the CPU.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """See `InstanceMapper.__call__`."""
        record = super().__call__(dataset_dict)
        if record is None:
            return None
        instances = record.get("instances")
        if instances is not None and instances.has("gt_masks"):
            instances = record["instances"] = select_objects(instances)  # the model takes no crowds
            instances.gt_borders = find_borders(instances.gt_masks.tensor)
        return record


@MAPPER_REGISTRY.register()
def polarmask(cfg: CfgNode, is_train: bool) -> PolarMaskMapper:
    """The mapper of INPUT.MAPPER "polarmask"."""
    return PolarMaskMapper(cfg, is_train)
