"""A picture of the embedding that a semi-convolutional model learned.

    python benchmarks/semiconv_embeddings.py --weights output/model_best.pth --output out.png

One row for each image of the data set that the weights are tested on: the image; the convolutional
response Phi of the foreground, the vector from a pixel to where it points; Psi, Phi plus the
position, one colour for each object if training succeeded; the masks. The colour wheel shows a
vector's direction as hue and its length as strength; Psi is shown relative to the mean of the
objects.

Legend: D embedding size, H W image size, h w grid.
"""

import argparse
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch import Tensor

from instancezoo import model_zoo
from instancezoo.data.images import ImageReader
from instancezoo.data.transforms import build_resize, make_model_input
from instancezoo.inference.predictor import ImagePredictor
from instancezoo.semiconv import SemiConvSegmentor

CELL, GAP = 256, 4  # pixels of the picture
FULL_CIRCLE = 180  # of OpenCV's hues
# Masks have hues that are far apart from one to the next.
HUE_STEP = 0.618034


def colour_vectors(vectors: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Direction as hue, length as saturation: (2, h, w), (h, w) bool -> (h, w, 3) BGR."""
    x, y = vectors
    lengths = np.hypot(x, y)
    longest = np.quantile(lengths[shown], 0.98) if shown.any() else 1.0
    hue = (np.arctan2(y, x) / (2 * np.pi) % 1 * FULL_CIRCLE).astype(np.uint8) % FULL_CIRCLE
    saturation = (255 * np.clip(lengths / max(longest, 1e-6), 0, 1)).astype(np.uint8)
    value = np.where(shown, 255, 0).astype(np.uint8)
    return cv2.cvtColor(np.stack([hue, saturation, value], axis=2), cv2.COLOR_HSV2BGR)


def colour_masks(masks: np.ndarray) -> np.ndarray:
    """(M, H, W) bool -> (H, W, 3) BGR, black where there is none."""
    hues = np.zeros((*masks.shape[1:], 3), np.uint8)
    for index, mask in enumerate(masks):
        hues[mask] = (int(index * HUE_STEP % 1 * FULL_CIRCLE), 200, 255)
    return cv2.cvtColor(hues, cv2.COLOR_HSV2BGR)


def draw_wheel(side: int) -> np.ndarray:
    """The colours of all vectors up to length 1: (side, side, 3) BGR."""
    y, x = np.mgrid[:side, :side] * 2 / (side - 1) - 1
    return colour_vectors(np.stack([x, y]), np.hypot(x, y) <= 1)


def compute_fields(model: SemiConvSegmentor, image: Tensor) -> tuple[np.ndarray, ...]:
    """Phi and Psi (2, h, w) and the foreground (h, w) bool of an image (3, H, W)."""
    images = model.preprocess([{"image": image}])
    features = model.backbone(images.tensor)
    maps = model.head([features[name] for name in model.in_features])
    grid = tuple(-(-side // model.stride) for side in image.shape[1:])
    rows, columns = slice(grid[0]), slice(grid[1])
    psi = maps.embeddings[:, :, rows, columns]
    phi = psi - model.head.coordinates(torch.zeros_like(psi), model.stride)
    probs = maps.cls_logits[0, :, rows, columns].float().softmax(dim=0)
    shown = 1 - probs[-1] >= model.grouping.foreground_thresh
    return phi[0, :2].cpu().numpy(), psi[0, :2].cpu().numpy(), shown.cpu().numpy()


def draw_row(model: Any, cfg: Any, picture: np.ndarray) -> list[np.ndarray]:
    """The cells of one image (H, W, 3) in the model's channel order."""
    record = make_model_input(picture, build_resize(cfg, is_train=False))
    with torch.no_grad():
        phi, psi, shown = compute_fields(model, record["image"])
        instances = model([record])[0]["instances"].to("cpu")
    centre = psi[:, shown].mean(axis=1) if shown.any() else np.zeros(2)
    cells = [
        picture if cfg.INPUT.FORMAT == "BGR" else picture[..., ::-1],
        colour_vectors(phi, shown),
        colour_vectors(psi - centre[:, None, None], shown),
        colour_masks(instances.pred_masks.numpy()),
    ]
    size = (CELL, CELL)
    return [cv2.resize(cell, size, interpolation=cv2.INTER_NEAREST) for cell in cells]


def join_cells(rows: list[list[np.ndarray]]) -> np.ndarray:
    """The rows under each other, and the colour wheel under them."""
    rows = [*rows, [draw_wheel(CELL // 2)]]
    height = len(rows) * (CELL + GAP) + GAP - CELL // 2
    picture = np.full((height, 4 * (CELL + GAP) + GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            y, x = GAP + i * (CELL + GAP), GAP + j * (CELL + GAP)
            picture[y : y + len(cell), x : x + cell.shape[1]] = cell
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="of a trained SemiConvSegmentor")
    parser.add_argument("--output", required=True, help="PNG file")
    parser.add_argument("--images", type=int, default=4, help="rows (%(default)s)")
    parser.add_argument("--dataset", default="", help="name; that of the weights if left out")
    args = parser.parse_args()
    cfg = model_zoo.get_trained_config(args.weights)
    model = ImagePredictor(cfg).model
    if not isinstance(model, SemiConvSegmentor):
        parser.error(f"{args.weights} is of {type(model).__name__}, not of SemiConvSegmentor")
    reader = ImageReader.from_config(cfg)
    records = DatasetCatalog.get(args.dataset or cfg.DATASETS.TEST[0])[: args.images]
    rows = [draw_row(model, cfg, reader(record["file_name"])) for record in records]
    cv2.imwrite(args.output, join_cells(rows))
    print(f"image, Phi, Psi and masks of {len(rows)} images: {args.output}")


if __name__ == "__main__":
    main()
