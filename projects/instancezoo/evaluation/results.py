"""COCO results of any number of images, kept on disk.

M instances of an image, H W its size.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.structures import BitMasks, BoxMode, Instances
from detectron2.utils import comm

from instancezoo.errors import ZooError
from instancezoo.files import open_atomically
from instancezoo.layers.rle import encode_bitmasks

# Largest message of one rank when the ranks' results are gathered.
CHUNK_BYTES = 16 * 2**20


class PredictionError(ZooError):
    """A model's predictions for one image cannot be used."""


def instances_to_results(
    instances: Instances, image_id: Any, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Turn a model's predictions for one image into COCO results.

    Args:
        instances: `pred_boxes` (M, 4) XYXY, `scores` (M,), `pred_classes` (M,) and, if the model
            makes masks, `pred_masks`: bool (M, H, W) or M COCO RLE dicts. Masks may have scores of
            their own, `mask_scores` (M,).
        image_id: id of the image in the annotation file.
        category_ids: category id in that file of each contiguous class.

    Returns:
        M dicts with `image_id`, `category_id`, `bbox` (XYWH), `score`, and of masks `segmentation`
        and, if they have it, `mask_score`, by which masks are ranked in evaluation.

    Raises:
        PredictionError: a score or box is not finite, or a class is out of range; names the image.
    """
    boxes = instances.pred_boxes.tensor.detach().float().cpu()  # NumPy knows no bfloat16
    scores = instances.scores.detach().cpu()
    mask_scores = instances.mask_scores.detach().cpu() if instances.has("mask_scores") else None
    for name, values in (("score", scores), ("mask score", mask_scores), ("box", boxes)):
        if values is None:
            continue
        if not torch.isfinite(values).all():
            raise PredictionError(
                f"image {image_id}: a predicted {name} is not finite. The training has probably "
                "diverged: check the losses, lower SOLVER.BASE_LR or clip gradients"
            )
    classes, num_classes = instances.pred_classes.tolist(), len(category_ids)
    for label in classes:
        if not 0 <= label < num_classes:
            raise PredictionError(
                f"image {image_id}: predicted class {label}, but the data set has {num_classes} "
                f"classes (0 to {num_classes - 1}); check NUM_CLASSES in the config"
            )
    xywh = BoxMode.convert(boxes.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(classes, xywh, scores.tolist(), strict=True)
    ]
    if instances.has("pred_masks"):
        for result, rle in zip(results, _masks_to_rle(instances.pred_masks), strict=True):
            result["segmentation"] = rle
    if mask_scores is not None:
        for result, score in zip(results, mask_scores.tolist(), strict=True):
            result["mask_score"] = score
    return results


class ResultsFile:
    """One JSON line for each image, in an unnamed temporary file.

    It takes no memory, leaves nothing behind after a crash, and images can be read in the order of
    writing or by id.

    Args:
        folder: a folder on the disk to use; the system's temporary folder if None.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile("w+b", dir=folder)  # noqa: SIM115
        self._size = 0
        self._offsets: dict[Any, int] | None = None

    def append(self, image_id: Any, results: list[dict[str, Any]]) -> None:
        """Add the results of one image. Raises `ValueError` for a number that is not finite."""
        row = {"image_id": image_id, "results": results}
        self._append_lines(json.dumps(row, allow_nan=False).encode() + b"\n")

    def __iter__(self) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """(image id, its results) in the order of writing."""
        for _, line in self._lines():
            row = json.loads(line)
            yield row["image_id"], row["results"]

    def image_ids(self) -> list[Any]:
        """Ids of all images written, also of those without results."""
        return list(self._index())

    def read(self, image_id: Any) -> list[dict[str, Any]]:
        """Results of one image; empty if it was never written."""
        offset = self._index().get(image_id)
        if offset is None:
            return []
        self._file.seek(offset)
        return json.loads(self._file.readline())["results"]

    def gather(self, folder: str | Path | None = None) -> ResultsFile | None:
        """Gather the results of all ranks; every rank must call it.

        They are sent in chunks, so ranks need no common disk and memory stays bounded. An image
        written more than once, by several ranks or by one, is kept once.

        Returns:
            The results of all ranks on rank 0, None elsewhere.
        """
        merged = ResultsFile(folder) if comm.is_main_process() else None
        seen: set[Any] = set()
        for chunk in self._chunks():
            parts = comm.gather(chunk)
            if merged is not None:
                for line in b"".join(parts).splitlines(keepends=True):
                    image_id = json.loads(line)["image_id"]
                    if image_id not in seen:
                        seen.add(image_id)
                        merged._append_lines(line)
        return merged

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()

    def write_json(self, path: str | Path) -> None:
        """Write COCO's result format, one array over all images, atomically."""
        with open_atomically(path, "w") as file:
            separator = "["
            for _, results in self:
                for result in results:
                    file.write(separator + json.dumps(result))
                    separator = ",\n"
            file.write("[]" if separator == "[" else "]")

    def _append_lines(self, lines: bytes) -> None:
        self._file.seek(self._size)
        self._file.write(lines)
        self._size += len(lines)
        self._offsets = None

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        offset = 0
        while offset < self._size:
            self._file.seek(offset)  # other reads may have moved the position
            line = self._file.readline()
            yield offset, line
            offset += len(line)

    def _index(self) -> dict[Any, int]:
        if self._offsets is None:
            self._offsets = {json.loads(line)["image_id"]: at for at, line in self._lines()}
        return self._offsets

    def _chunks(self) -> Iterator[bytes]:
        """Whole lines, about `CHUNK_BYTES` at a time, until all ranks have sent their last."""
        lines = self._lines()
        while True:
            chunk = bytearray()
            while len(chunk) < CHUNK_BYTES and (line := next(lines, (0, b""))[1]):
                chunk += line
            if not any(comm.all_gather(len(chunk))):
                return
            yield bytes(chunk)


def _masks_to_rle(masks: Any) -> list[dict[str, Any]]:
    if isinstance(masks, BitMasks):
        masks = masks.tensor
    if isinstance(masks, torch.Tensor | np.ndarray):
        return encode_bitmasks(torch.as_tensor(masks).bool())
    counts = [rle["counts"] for rle in masks]
    counts = [text.decode("ascii") if isinstance(text, bytes) else text for text in counts]
    return [{"size": list(rle["size"]), "counts": c} for rle, c in zip(masks, counts, strict=True)]
