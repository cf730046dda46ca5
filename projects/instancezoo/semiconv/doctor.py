"""Check of the sizes of objects against the smallest segment that grouping keeps.

Legend: M objects.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from instancezoo.doctor.context import Context
from instancezoo.doctor.findings import Finding, ok, warning

from .segmentor import SemiConvSegmentor

MAX_LOST_SHARE = 0.01
# Share of objects that the advised MIN_SIZE leaves below it.
ADVISED_SHARE = 0.005


def check_smallest_segment(context: Context) -> Iterator[Finding]:
    """Objects whose whole box has fewer cells than MODEL.SEMICONV.MIN_SIZE: none can be found."""
    model = context.model
    if not isinstance(model, SemiConvSegmentor):
        return
    smallest = model.grouping.min_size
    for facts, boxes in context.train_boxes:
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)  # (M, 2)
        cells = sides.prod(axis=1) / model.stride**2
        share = float((cells < smallest).mean())
        message = (
            f"{facts.name}: {share:.1%} of objects have a box under MODEL.SEMICONV.MIN_SIZE "
            f"{smallest} cells of {model.stride}x{model.stride} pixels"
        )
        advised = max(1, int(np.quantile(cells, ADVISED_SHARE)))
        remedy = f"set MODEL.SEMICONV.MIN_SIZE {advised}"
        if advised == 1:
            remedy += f", lower MODEL.SEMICONV.STRIDE or raise {context.train_size.keys}"
        yield warning(message, remedy) if share > MAX_LOST_SHARE else ok(message)
