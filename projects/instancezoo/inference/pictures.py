"""Drawing of predictions on images and video frames, and atomic writing of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer

from instancezoo.files import PartialFile, open_atomically

MIN_PICTURE_SIZE = 480  # smaller images are magnified to this many pixels: labels stay legible
CODEC = "mp4v"


def draw_picture(image: np.ndarray, instances: Instances, metadata: Any) -> np.ndarray:
    """Draw masks, boxes, class names and scores.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: predictions on the CPU; masks as bool (M, H, W) or RLE dicts.
        metadata: Detectron2's, with `thing_classes` if known.

    Returns:
        (H', W', 3) uint8 RGB, small images magnified.
    """
    scale = max(1.0, MIN_PICTURE_SIZE / max(image.shape[:2]))
    drawing = Visualizer(image, metadata, scale=scale)
    return drawing.draw_instance_predictions(_clamp_scores(instances)).get_image()


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) uint8 atomically."""
    done, content = cv2.imencode(path.suffix, np.ascontiguousarray(picture[:, :, ::-1]))
    if not done:
        raise OSError(f"{path}: cannot encode a picture of {picture.shape[1]}x{picture.shape[0]}")
    with open_atomically(path) as file:
        file.write(content.tobytes())


class VideoDrawing:
    """A video with predictions drawn on it; an object keeps its colour.

    Args:
        path: the `.mp4` to write; `close` gives it its name.
        fps: frames per second.
        metadata: Detectron2's.
    """

    def __init__(self, path: Path, fps: float, metadata: Any) -> None:
        self._file = PartialFile(path, path.suffix)  # OpenCV picks the container by the suffix
        self._fps = fps
        self._drawing = VideoVisualizer(metadata)
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: np.ndarray, instances: Instances) -> None:
        """Draw one frame (H, W, 3) uint8 RGB. Raises `OSError` if the video cannot be written."""
        # VideoVisualizer selects masks by an index list, which a plain list of RLE does not support
        drawn = _clamp_scores(instances)
        if drawn.has("pred_masks"):
            drawn.remove("pred_masks")
            drawn.pred_masks = _as_array(instances.pred_masks)
        picture = self._drawing.draw_instance_predictions(frame, drawn).get_image()
        picture = picture[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]  # codec: even
        if self._writer is None:
            self._writer = self._open(picture.shape[1], picture.shape[0])
        self._writer.write(np.ascontiguousarray(picture[:, :, ::-1]))

    def close(self, keep: bool) -> None:
        """Finish: give the video its name if `keep`, else remove it."""
        if self._writer is not None:
            self._writer.release()
        self._file.close(keep=keep and self._writer is not None)

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        codec = cv2.VideoWriter.fourcc(*CODEC)
        writer = cv2.VideoWriter(str(self._file.hidden), codec, self._fps, (width, height))
        if not writer.isOpened():
            raise OSError(f"{self._file.path}: OpenCV cannot write {CODEC} {width}x{height}")
        return writer


def _clamp_scores(instances: Instances) -> Instances:
    """Copy with scores of at most 1: PolarMask's may be higher, but labels are percentages."""
    drawn = Instances(instances.image_size, **instances.get_fields())
    drawn.scores = drawn.scores.clamp(max=1)
    return drawn


def _as_array(masks: Any) -> np.ndarray:
    if isinstance(masks, list):
        rles = np.empty(len(masks), dtype=object)
        rles[:] = masks
        return rles
    return masks.numpy()
