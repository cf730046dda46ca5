"""What cropping does to YOLACT's masks: by predicted boxes, by the objects' own, or not at all.

    python benchmarks/yolact_crops.py --weights model_best.pth --dataset shapes_tiny_val

Detections and scores are the same in all rows. A detection that overlaps no object of the data set
by an IoU of 0.5 keeps its own box in the second row.

Legend: M detections, G objects.
"""

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from instancezoo import model_zoo
from instancezoo.data.datasets import load_metadata
from instancezoo.data.images import ImageReader
from instancezoo.data.transforms import build_resize, make_model_input
from instancezoo.evaluation import GroundTruth, evaluate_results
from instancezoo.evaluation.results import instances_to_results
from instancezoo.evaluation.tables import format_table
from instancezoo.inference.predictor import ImagePredictor
from instancezoo.modeling.masks import mask_output_set

CROPS = ("predicted boxes", "objects' boxes", "none")
MATCH_IOU = 0.5
EVERYWHERE = 1e6


def replace_boxes(crop: str, boxes: Tensor, objects: Tensor) -> Tensor:
    """Boxes to crop by: (M, 4) predicted ones and (G, 4) of the objects -> (M, 4)."""
    if crop == "none":
        return torch.tensor([-EVERYWHERE, -EVERYWHERE, EVERYWHERE, EVERYWHERE]).expand_as(boxes)
    if crop == "predicted boxes" or len(objects) == 0:
        return boxes
    ious, best = pairwise_iou(Boxes(boxes), Boxes(objects)).max(dim=1)  # (M,)
    return torch.where((ious >= MATCH_IOU)[:, None], objects[best], boxes)


def list_objects(record: dict[str, Any]) -> Tensor:
    """XYXY as shares of the image's size, (G, 4)."""
    boxes = torch.tensor([x["bbox"] for x in record["annotations"]]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes / torch.tensor([record["width"], record["height"]]).repeat(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="of a trained YOLACT")
    parser.add_argument("--dataset", required=True, help="a registered data set, COCO boxes XYWH")
    args = parser.parse_args()
    cfg = model_zoo.get_trained_config(args.weights)
    model = ImagePredictor(cfg).model
    reader, resize = ImageReader.from_config(cfg), build_resize(cfg, is_train=False)
    metadata = load_metadata(args.dataset)
    ground_truth = GroundTruth.read(metadata.json_file)
    category_ids = list(metadata.thing_dataset_id_to_contiguous_id)
    rows: dict[str, list[dict[str, Any]]] = {crop: [] for crop in CROPS}
    crop = CROPS[0]
    shares = torch.zeros(0, 4)
    decode = model.decode

    def decode_and_replace(*arguments: Any) -> Any:
        found = decode(*arguments)
        for candidates in found:
            masks = candidates.pred_masks
            size = torch.tensor(masks.prototypes.shape[:0:-1]).repeat(2)  # w, h, w, h
            boxes = replace_boxes(crop, masks.boxes.cpu(), shares * size)
            candidates.pred_masks = replace(masks, boxes=boxes.to(masks.boxes.device))
        return found

    model.decode = decode_and_replace
    with mask_output_set(model, "rle"), torch.no_grad():
        for record in DatasetCatalog.get(args.dataset):
            shares = list_objects(record)
            image = make_model_input(np.asarray(reader.read_record(record)), resize)
            for crop in CROPS:
                found = model([image])[0]["instances"].to("cpu")
                rows[crop] += instances_to_results(found, record["image_id"], category_ids)
    table = []
    for name, results in rows.items():
        evaluation = evaluate_results(ground_truth, results, "segm")
        sizes = {f"AP{area[0]}": evaluation.ap(area=area) for area in ("small", "medium")}
        table.append({
            "cropped by": name, "AP": evaluation.ap(), "AP50": evaluation.ap(0.5),
            "AP75": evaluation.ap(0.75), **sizes,
        })  # fmt: skip
    print(format_table(table))


if __name__ == "__main__":
    main()
