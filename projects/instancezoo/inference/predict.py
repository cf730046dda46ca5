"""Prediction on many files; those that cannot be read are reported and left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Instances

from instancezoo.data.images import ImageError, ImageReader
from instancezoo.errors import ZooError, first_line
from instancezoo.evaluation.results import PredictionError
from instancezoo.files import remove_leftovers
from instancezoo.progress import track

from .coco_json import PredictionsFile, open_predictions
from .inputs import Input, name_pictures
from .pictures import VideoDrawing, draw_picture, write_picture

PREDICTIONS_NAME = "predictions.json"
DEFAULT_FPS = 25.0  # for videos that do not state it
# Frame counts of containers are approximate; below this share the rest counts as damaged.
MIN_DECODED_SHARE = 0.9


@dataclass(frozen=True)
class Failure:
    """A file that was left out, with the reason in one line."""

    path: Path
    reason: str


def predict_inputs(
    predictor: Callable[[np.ndarray], Instances],
    inputs: list[Input],
    output: Path,
    cfg: Any,
    *,
    metadata: Any = None,
    with_pictures: bool = True,
    mask_form: str = "rle",
    relative_to: Path | None = None,
) -> list[Failure]:
    """Predict on every file; write a picture or video for each, and one COCO file for all.

    Args:
        predictor: image (H, W, C) of the config's `ImageReader` -> Instances on the CPU.
        inputs: images and videos.
        output: folder for the pictures and `predictions.json`; created if missing.
        cfg: reads what `ImageReader` reads.
        metadata: Detectron2's, for class names and ids; by default that of DATASETS.TEST.
        with_pictures: if False, only the COCO file is written.
        mask_form: "rle" or "polygon" in the COCO file, see `open_predictions`.
        relative_to: folder that file names in the COCO file start from; None keeps the given paths.

    Returns:
        The files that could not be read, predicted or drawn, for whatever reason.

    Raises:
        ZooError: a picture would overwrite an input, an input is not in `relative_to`, or polygons
            are wanted from a model without polygons.
    """
    targets = name_pictures(inputs, output)
    names = {item.path: _name_file(item.path, relative_to) for item in inputs}
    remove_leftovers(output)
    if metadata is None:
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else Metadata()
    heads = [node for node in cfg.MODEL.values() if isinstance(node, dict)]
    # no predicted class exceeds the largest number
    num_classes = max(head["NUM_CLASSES"] for head in heads if "NUM_CLASSES" in head)
    class_names, category_ids = name_classes(metadata, num_classes)
    failures = []
    file = output / PREDICTIONS_NAME
    with open_predictions(file, class_names, category_ids, mask_form) as predictions:
        run = _Run(predictor, names, metadata, ImageReader.from_config(cfg), predictions)
        for item, target in track(list(zip(inputs, targets, strict=True)), "Predicting"):
            predict = run.predict_video if item.is_video else run.predict_image
            try:
                predict(item.path, target if with_pictures else None)
            except _FileError as error:
                failures.append(Failure(item.path, first_line(error)))
    return failures


def name_classes(metadata: Any, num_classes: int) -> tuple[list[str], list[int]]:
    """List names and category ids of the contiguous classes; numbers if there are no names."""
    names = list(metadata.get("thing_classes", None) or [])
    if not names:
        return [str(i) for i in range(num_classes)], list(range(num_classes))
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
    ids = {index: category_id for category_id, index in contiguous.items()}
    return names, [ids.get(index, index) for index in range(len(names))]


def _name_file(path: Path, folder: Path | None) -> str:
    """Name of a file in the COCO file; below `folder` with "/" on every system."""
    if folder is None:
        return str(path)
    # Not resolved: a link keeps the name that the user knows.
    whole, start = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    if not whole.is_relative_to(start):
        raise ZooError(
            f"{path} is not in {folder}: names relative to it (--relative-to) cannot be written. "
            "Name a folder that holds all inputs"
        )
    return whole.relative_to(start).as_posix()


class _FileError(Exception):
    """This file is left out or done in part; the run continues."""


@dataclass(frozen=True)
class _Run:
    """The settings that all files of a run share."""

    predictor: Callable[[np.ndarray], Instances]
    names: dict[Path, str]  # in the COCO file
    metadata: Any
    reader: ImageReader
    predictions: PredictionsFile

    def predict_image(self, path: Path, target: Path | None) -> None:
        try:
            image = self.reader(path)
        except ImageError as error:
            raise _FileError(str(error)) from error
        instances = self._predict(image)
        try:
            self.predictions.add(self.names[path], instances)
        except PredictionError as error:
            raise _FileError(first_line(error)) from error
        if target is None:
            return
        try:
            picture = draw_picture(self.reader.to_rgb(image), instances, self.metadata)
            write_picture(target, picture)
        except Exception as error:  # disk full, or too large to draw on
            raise _FileError(f"predicted but not drawn: {_describe(error)}") from error

    def predict_video(self, path: Path, target: Path | None) -> None:
        video = cv2.VideoCapture(str(path))
        drawing = None
        if target is not None:
            fps = video.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
            drawing = VideoDrawing(target, fps, self.metadata)
        done, total = 0, max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))  # 0: not stated
        try:
            for frame in track(_decode_frames(video), path.name, total=total or None):
                instances = self._predict(self.reader.convert_rgb(frame))
                name = self.names[path]
                self.predictions.add(f"{name}#{done}", instances, video=name, frame=done)
                done += 1
                if drawing is not None:
                    drawing.add(frame, instances)
        except (OSError, ImageError, PredictionError, cv2.error) as error:
            raise _FileError(first_line(error)) from error
        finally:
            video.release()
            if drawing is not None:
                drawing.close(keep=done > 0)
        if done < MIN_DECODED_SHARE * max(total, 1):
            raise _FileError(f"{path}: damaged or not a video: {done} of {total} frames decoded")

    def _predict(self, image: np.ndarray) -> Instances:
        try:
            return self.predictor(image)
        except (torch.OutOfMemoryError, MemoryError) as error:
            height, width = image.shape[:2]
            raise _FileError(f"out of memory at {width}x{height} pixels") from error
        except Exception as error:
            raise _FileError(f"the model failed: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _decode_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while video.isOpened():
        found, frame = video.read()  # (H, W, 3) uint8 BGR
        if not found:
            return
        yield frame[:, :, ::-1]  # RGB
