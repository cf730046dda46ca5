"""A picture of what YOLACT's prototypes respond to as an object moves (YOLACT, figure 5).

    python benchmarks/yolact_prototypes.py --weights output/yolact/model_best.pth --output out.png

One row for the images and one for each prototype, one column for each place of the object. Dark is
0, bright the prototype's largest value in its row. The prototypes shown are those whose values
depend most on where the object is.

Legend: T images, D prototypes, H W size of an image or prototype.
"""

import argparse
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from instancezoo import model_zoo
from instancezoo.data.shape_outlines import SHAPES, measure_coverage, place_outline
from instancezoo.inference.predictor import ImagePredictor
from instancezoo.modeling.input_size import stretch_image

PLACES = ((0.25, 0.25), (0.5, 0.25), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.75, 0.75))
RADIUS = 0.16  # of the image's side
BACKGROUND, OBJECT = (70, 90, 80), (230, 140, 60)  # RGB
NOISE = 2
CELL, GAP = 96, 3  # pixels of the picture


def draw_images(shape: str, side: int) -> np.ndarray:
    """One object at each of `PLACES`: (T, H, W, 3) RGB in [0, 255]."""
    rng = np.random.default_rng(0)
    outline = SHAPES[shape](rng)
    grain = rng.normal(0, NOISE, (side, side, 3))
    images = []
    for x, y in PLACES:
        placed = place_outline(outline, x * side, y * side, RADIUS * side, 0.4)
        coverage = measure_coverage(placed, side, side)[..., None] / measure_full(side)
        image = np.array(BACKGROUND) * (1 - coverage) + np.array(OBJECT) * coverage + grain
        images.append(image.clip(0, 255))
    return np.stack(images)


def measure_full(side: int) -> float:
    """What `measure_coverage` gives for a pixel inside of an outline."""
    square = np.array([[0.0, 0.0], [side, 0.0], [side, side], [0.0, side]])
    return float(measure_coverage([square], side, side).max())


def compute_prototypes(model: Any, images: np.ndarray, size: tuple[int, int]) -> Tensor:
    """(T, H, W, 3) images in the model's channel order -> (T, D, H, W)."""
    batch = [{"image": torch.from_numpy(image).permute(2, 0, 1).float()} for image in images]
    with torch.no_grad():
        tensor = model.preprocess([stretch_image(record, size) for record in batch]).tensor
        features = model.backbone(tensor)
        prototypes: Tensor = model.head([features[name] for name in model.in_features]).prototypes
    return prototypes


def choose_prototypes(prototypes: Tensor, count: int) -> list[int]:
    """The one that changes most from image to image, then those least like the chosen ones."""
    values = prototypes.transpose(0, 1).flatten(1)  # (D, T*H*W)
    spread = prototypes.std(dim=0).mean(dim=(1, 2)) / values.amax(dim=1).clamp(min=1e-6)  # (D,)
    likeness = torch.corrcoef(values).nan_to_num(1.0).abs()  # (D, D); NaN: it is constant
    energy = values.mean(dim=1)
    likeness[:, energy < energy.median()] = 1.0  # nearly unused
    chosen = [int(spread.argmax())]
    while len(chosen) < count:
        chosen.append(int(likeness[chosen].amax(dim=0).argmin()))
    return chosen


def draw_picture(images: np.ndarray, prototypes: Tensor, chosen: list[int]) -> np.ndarray:
    """The rows under each other, BGR."""
    rows = [[cv2.resize(image[..., ::-1].astype(np.uint8), (CELL, CELL)) for image in images]]
    for index in chosen:
        maps = prototypes[:, index].numpy()
        grey = (255 * maps / max(maps.max(), 1e-6)).astype(np.uint8)
        large = [cv2.resize(one, (CELL, CELL), interpolation=cv2.INTER_NEAREST) for one in grey]
        rows.append([cv2.applyColorMap(one, cv2.COLORMAP_VIRIDIS) for one in large])
    size = [len(rows) * (CELL + GAP) + GAP, len(images) * (CELL + GAP) + GAP, 3]
    picture = np.full(size, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            y, x = GAP + i * (CELL + GAP), GAP + j * (CELL + GAP)
            picture[y : y + CELL, x : x + CELL] = cell
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="of a YOLACT trained on `shapes`")
    parser.add_argument("--output", required=True, help="PNG file")
    parser.add_argument("--shape", default="disc", choices=sorted(SHAPES), help="%(default)s")
    parser.add_argument("--prototypes", type=int, default=6, help="rows (%(default)s)")
    args = parser.parse_args()
    cfg = model_zoo.get_trained_config(args.weights)
    model = ImagePredictor(cfg).model
    size = tuple(cfg.INPUT.FIXED_SIZE)
    images = draw_images(args.shape, max(size))
    order = 1 if cfg.INPUT.FORMAT == "RGB" else -1
    prototypes = compute_prototypes(model, images[..., ::order].copy(), size).cpu()
    chosen = choose_prototypes(prototypes, args.prototypes)
    cv2.imwrite(args.output, draw_picture(images, prototypes, chosen))
    print(f"prototypes {chosen} of {prototypes.shape[1]}: {args.output}")


if __name__ == "__main__":
    main()
