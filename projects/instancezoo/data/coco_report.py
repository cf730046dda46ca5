"""What was dropped from a COCO JSON, what was repaired, and what looks wrong."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

from instancezoo.data.coco_values import Id

MAX_IDS_SHOWN = 10

# Ids of entries by problem or repair; `#n` is the n-th entry of a list if that has no id.
Listing = dict[str, list[Id]]


@dataclass
class AnnotationReport:
    """What was wrong with a data set.

    Attributes:
        source: the JSON file.
        encoding: text encoding of the file.
        dropped: dropped entries by problem.
        repaired: entries that were repaired and kept, by repair.
        examples: what was found in the first entry of a problem, for some problems.
        misfits: annotations, kept as they are, whose box does not lie around their mask.
        misfit_cause: what the boxes of `misfits` look like; "" if that is unknown.
        num_images: images kept.
        num_annotations: annotations kept.
        num_crowds: annotations kept that have iscrowd 1.
        num_boxes_only: annotations kept that have no mask.
        num_boxes_beyond: those of them whose box reached beyond the image.
    """

    source: str
    encoding: str = "utf-8"
    dropped: Listing = field(default_factory=partial(defaultdict, list))
    repaired: Listing = field(default_factory=partial(defaultdict, list))
    examples: dict[str, str] = field(default_factory=dict)
    misfits: list[Id] = field(default_factory=list)
    misfit_cause: str = ""
    num_images: int = 0
    num_annotations: int = 0
    num_crowds: int = 0
    num_boxes_only: int = 0
    num_boxes_beyond: int = 0

    @property
    def num_dropped(self) -> int:
        """Number of categories, images and annotations that were dropped."""
        return sum(map(len, self.dropped.values()))

    @property
    def is_clean(self) -> bool:
        """True if the file is used as it is."""
        return not self.dropped and not self.repaired and self.encoding == "utf-8"

    def summary(self) -> str:
        """One line of totals, then one line per problem and repair."""
        total = self.num_annotations
        lines = [f"{self.source}: {self.num_images} images, {total} annotations"]
        if self.encoding != "utf-8":
            lines.append(f"  read as {self.encoding}; evaluation uses a copy in UTF-8")
        if self.num_crowds:
            count = f"{self.num_crowds} of {total} annotations have"
            lines.append(f"  {count} iscrowd 1 and are not trained on")
        if self.num_boxes_only:
            count = f"{self.num_boxes_only} of {total} annotations have"
            lines.append(f"  {count} no segmentation: only models without masks train on them")
        if self.misfits:
            lines.append(f"  {self.describe_misfits()} (id {_list_ids(self.misfits)})")
        for verb, listing in (("dropped", self.dropped), ("repaired", self.repaired)):
            for problem, ids in sorted(listing.items()):
                example = f"; first: {self.examples[problem]}" if problem in self.examples else ""
                lines.append(f"  {verb} {len(ids)}: {problem} (id {_list_ids(ids)}{example})")
        return "\n".join(lines)

    def describe_misfits(self) -> str:
        """Number of boxes that do not fit, with the likely cause."""
        cause = f"; likely cause: {self.misfit_cause}" if self.misfit_cause else ""
        return (
            f"{len(self.misfits)} of {self.num_annotations} boxes do not lie around their masks"
            f"{cause}"
        )


def _list_ids(ids: list[Id]) -> str:
    more = ", ..." if len(ids) > MAX_IDS_SHOWN else ""
    return ", ".join(map(str, ids[:MAX_IDS_SHOWN])) + more
