"""What all mask forms share.

Legend: M masks, H W image size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class MaskForm(ABC):
    """M masks of one image in compact form: each tensor among the fields has one row per mask.

    A form may name one tensor that all masks share in `SHARED`; it has no rows of masks. Length,
    indexing, `to` and `cat` work as in Detectron2's structures.
    """

    SHARED: ClassVar[str] = ""

    def __len__(self) -> int:
        return len(next(iter(self._list_rows().values())))

    def __getitem__(self, item: int | slice | Tensor) -> Self:
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"no mask {item} among {len(self)}")  # also ends a `for` loop
            item = slice(item, item + 1 or None)
        return replace(self, **{name: rows[item] for name, rows in self._list_rows().items()})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the tensors, as `Tensor.to`."""
        tensors = self._list_tensors().items()
        return replace(self, **{name: values.to(*args, **kwargs) for name, values in tensors})

    @staticmethod
    def cat(parts: Sequence[Any]) -> Any:
        """Join masks of one form and image; the first part's other fields apply to all.

        Raises:
            ValueError: their shared tensors differ.
        """
        shared = parts[0].SHARED
        if shared:
            first, *others = (getattr(part, shared) for part in parts)
            if not all(other is first or other.equal(first) for other in others):
                raise ValueError(
                    f"masks of different {shared} lie on different maps and cannot be joined"
                )
        names = parts[0]._list_rows()
        rows = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], **rows)

    def _list_rows(self) -> dict[str, Tensor]:
        tensors = self._list_tensors().items()
        return {name: values for name, values in tensors if name != self.SHARED}

    def _list_tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @abstractmethod
    def bitmasks(self, height: int, width: int) -> Tensor:
        """Full-size masks.

        Args:
            height, width: size in pixels of the image that the masks refer to.

        Returns:
            (M, H, W) bool.
        """

    @abstractmethod
    def rle(self, height: int, width: int) -> list[dict[str, Any]]:
        """COCO RLE of the same masks; full-size masks are never built.

        Args:
            height, width: size in pixels of the image that the masks refer to.

        Returns:
            M dicts `{"size": [H, W], "counts": str}`.
        """
