"""Pictures of the best and the worst images, prediction beside ground truth."""

from __future__ import annotations

import colorsys
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_codec
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from instancezoo.data.coco_masks import segmentation_to_rle
from instancezoo.data.images import ImageReader
from instancezoo.errors import first_line
from instancezoo.evaluation.ground_truth import BoxOrMask, GroundTruth, find_score
from instancezoo.evaluation.matching import match_detections
from instancezoo.evaluation.results import ResultsFile
from instancezoo.files import open_atomically
from instancezoo.progress import track

logger = logging.getLogger(__name__)

# Candidate score thresholds for pictures; the one with the best quality over the data set is used,
# since a fixed threshold would hide all detections of methods with low scores.
SCORE_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
SHORT_SIDE = (360, 720)  # lowest and highest, in pixels
LONG_SIDE = 8192  # highest of a magnified image, in pixels
MAX_LABELS = 20  # draw no labels if there are more, since they would hide the objects
_GAP, _TITLE_HEIGHT = 8, 28
_FALSE_COLOR = (1.0, 0.0, 0.0)
RGB_READER = ImageReader("RGB")


@dataclass(frozen=True)
class Ranking:
    """Images from best to worst."""

    image_ids: list[Any]  # without images that have neither objects nor detections
    qualities: list[float]  # `Matches.quality` of each, descending
    score_threshold: float  # smallest score of the detections that were used


def rank_images(ground_truth: GroundTruth, results: ResultsFile, iou_type: BoxOrMask) -> Ranking:
    """Sort all predicted images by `Matches.quality`."""
    image_ids, rows = [], []
    for image_id, detections in results:
        matches = match_detections(ground_truth, image_id, detections, iou_type)
        image_ids.append(image_id)
        rows.append([matches.quality(threshold) for threshold in SCORE_THRESHOLDS])
    qualities = np.array(rows).reshape(-1, len(SCORE_THRESHOLDS))  # (N, thresholds)
    # An image without objects (NaN) is perfect once it has no detections.
    best = int(np.nan_to_num(qualities, nan=1.0).sum(axis=0).argmax())
    chosen = qualities[:, best]
    order = [int(i) for i in np.argsort(-chosen, kind="stable") if not np.isnan(chosen[i])]
    ranked_ids = [image_ids[i] for i in order]
    return Ranking(ranked_ids, chosen[order].tolist(), SCORE_THRESHOLDS[best])


def draw_pictures(
    ground_truth: GroundTruth,
    results: ResultsFile,
    iou_type: BoxOrMask,
    image_root: str | Path,
    folder: str | Path,
    num_pictures: int = 20,
    reader: ImageReader = RGB_READER,
) -> list[Path]:
    """Draw the best and the worst images; masks of no other image are decoded.

    An object and the detection that found it have the same colour; false detections are red.
    An image that cannot be read or drawn is left out with a warning.

    Args:
        image_root: folder that the annotation file's names are relative to.
        folder: folder for `best_01_<image id>.png`, `worst_01_<image id>.png`, ...; such pictures
            of an earlier evaluation are removed.
        num_pictures: number of best and number of worst images; no image is both.
        reader: of the images.

    Returns:
        Paths of the pictures, the best first, then the worst from the very worst on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("best_*.png"), *folder.glob("worst_*.png")]:
        old.unlink()
    ranking = rank_images(ground_truth, results, iou_type)
    quality = dict(zip(ranking.image_ids, ranking.qualities, strict=True))
    paths = []
    for kind, rank, image_id in track(_choose(ranking.image_ids, num_pictures), "pictures"):
        try:
            picture = draw_comparison(
                ground_truth, image_id, results.read(image_id), iou_type, image_root,
                ranking.score_threshold, f"quality {quality[image_id]:.2f}", reader,
            )  # fmt: skip
        except Exception as error:  # a picture is no reason to lose the evaluation
            logger.warning("no picture of image %s: %s", image_id, first_line(error))
            continue
        name = re.sub(r"[^\w.-]", "_", str(image_id))
        paths.append(folder / f"{kind}_{rank:02d}_{name}.png")
        with open_atomically(paths[-1]) as file:
            Image.fromarray(picture).save(file, "PNG")
    return paths


def draw_comparison(
    ground_truth: GroundTruth,
    image_id: Any,
    results: list[dict[str, Any]],
    iou_type: BoxOrMask,
    image_root: str | Path,
    score_threshold: float = 0.5,
    title: str = "",
    reader: ImageReader = RGB_READER,
) -> np.ndarray:
    """Draw the prediction (left) beside the ground truth (right) of one image, uint8 RGB.

    Raises:
        ImageError: the image cannot be read, or is not of the annotations' size.
    """
    record = ground_truth.images[image_id]
    path = os.path.join(image_root, str(record.get("file_name", "")))
    pixels = reader.to_rgb(reader.read_record({**record, "file_name": path}))
    results = [r for r in results if find_score(r, iou_type) >= score_threshold]
    annotations = ground_truth.annotations_of(image_id)
    matches = match_detections(ground_truth, image_id, results, iou_type)
    names = {category["id"]: category["name"] for category in ground_truth.categories}
    palette = [_pick_color(index) for index in range(len(annotations))]
    found = [palette[owner] if owner >= 0 else _FALSE_COLOR for owner in matches.objects]
    num_found = int((matches.objects >= 0).sum())
    num_false = int(((matches.objects < 0) & ~matches.is_ignored).sum())
    left = _draw_objects(
        pixels, results, found, iou_type,
        [
            f"{names[r['category_id']]} {100 * min(find_score(r, iou_type), 1):.0f}%"
            for r in results
        ],
        f"found {num_found}, false {num_false} (score >= {score_threshold:.2f})",
    )  # fmt: skip
    right = _draw_objects(
        pixels, annotations, palette, iou_type,
        [names.get(a["category_id"], "?") + " (crowd)" * a["iscrowd"] for a in annotations],
        f"truth {matches.num_objects}, image {image_id}, {title}".rstrip(", "),
    )  # fmt: skip
    gap = np.full((len(left), _GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _choose(image_ids: list[Any], num_pictures: int) -> list[tuple[str, int, Any]]:
    num_best = min(num_pictures, (len(image_ids) + 1) // 2)
    num_worst = min(num_pictures, len(image_ids) - num_best)
    chosen = [("best", *item) for item in enumerate(image_ids[:num_best], 1)]
    return chosen + [("worst", *item) for item in enumerate(image_ids[::-1][:num_worst], 1)]


def _draw_objects(
    pixels: np.ndarray,
    objects: Sequence[dict[str, Any]],
    colors: Sequence[tuple[float, float, float]],
    iou_type: BoxOrMask,
    labels: Sequence[str],
    title: str,
) -> np.ndarray:
    height, width = pixels.shape[:2]
    short = min(height, width)
    # A thin image is magnified less: its long side would fill the memory.
    largest_scale = max(1.0, LONG_SIDE / max(height, width))
    scale = min(float(np.clip(short, *SHORT_SIDE)) / short, largest_scale)
    visualizer = Visualizer(pixels, scale=scale)
    texts = labels if len(labels) <= MAX_LABELS else [None] * len(labels)
    # Large ones first, or they would hide the small ones.
    for index in sorted(range(len(objects)), key=lambda i: -_box_area(objects[i])):
        item, color, text = objects[index], colors[index], texts[index]
        if iou_type == "segm" and item.get("segmentation"):
            mask = mask_codec.decode(segmentation_to_rle(item["segmentation"], height, width))
            visualizer.draw_binary_mask(mask, color, text=text, alpha=0.45, area_threshold=0)
        elif item.get("bbox"):
            x, y, w, h = item["bbox"]
            visualizer.overlay_instances(
                boxes=np.array([[x, y, x + w, y + h]]),
                labels=None if text is None else [text],
                assigned_colors=[color],
            )
    return _add_title(visualizer.output.get_image(), title)


def _box_area(item: dict[str, Any]) -> float:
    _, _, width, height = item.get("bbox") or (0, 0, 0, 0)
    return float(width * height)


def _pick_color(index: int) -> tuple[float, float, float]:
    """RGB in [0, 1], with well separated hues that avoid red."""
    golden_ratio = 0.618034
    return colorsys.hsv_to_rgb(0.12 + 0.76 * (index * golden_ratio % 1.0), 0.9, 0.95)


def _add_title(picture: np.ndarray, text: str) -> np.ndarray:
    strip = np.full((_TITLE_HEIGHT, picture.shape[1], 3), 255, dtype=np.uint8)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.5
    (width, _), _ = cv2.getTextSize(text, font, size, 1)
    size *= min(1.0, max(1, picture.shape[1] - 8) / width)
    cv2.putText(strip, text, (4, 19), font, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])
