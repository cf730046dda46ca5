"""Compare how well the masks of several models follow the objects' contours.

    python benchmarks/boundary_quality.py --dataset shapes_tiny_val RESULTS.json [RESULTS.json ...]
    python benchmarks/boundary_quality.py --dataset mine=val.json:images/ RESULTS.json ...

RESULTS.json is the `coco_instances_results.json` that train_net.py writes under
`OUTPUT_DIR/inference/DATASET/`. The table shows for each file mask AP, AP at IoU 0.5, 0.75 and 0.9,
the number of objects found and their boundary F-score; `F common` averages over the objects found
in all files, so that a model does not gain by missing the hard ones.
"""

import argparse
import statistics
import sys
from typing import Any

from detectron2.utils.file_io import PathManager

from instancezoo.data.coco_dataset import read_json
from instancezoo.data.datasets import load_metadata, parse_dataset_argument, register_dataset
from instancezoo.errors import ZooError
from instancezoo.evaluation import GroundTruth, evaluate_results
from instancezoo.evaluation.boundary import DEFAULT_TOLERANCE, score_boundaries
from instancezoo.evaluation.tables import Row, format_table

IOUS = (0.5, 0.75, 0.9)


def read_ground_truth(dataset: str) -> GroundTruth:
    """Annotations of a registered data set, or of NAME=JSON:IMAGES."""
    if "=" in dataset:
        name, json_file, images = parse_dataset_argument(dataset)
        register_dataset(name, json_file, images)
        dataset = name
    path = load_metadata(dataset).get("json_file")
    if not path:
        raise ZooError(f"data set '{dataset}' has no annotation file: give NAME=JSON:IMAGES")
    return GroundTruth.read(PathManager.get_local_path(path))


def read_results(path: str) -> list[dict[str, Any]]:
    """COCO results with masks."""
    results = read_json(path)
    if not isinstance(results, list) or any("segmentation" not in row for row in results):
        raise ZooError(f"'{path}' is not a list of COCO results with masks: evaluate a mask model")
    return results


def compare(ground_truth: GroundTruth, files: list[str], tolerance: float) -> list[Row]:
    """One row per results file."""
    all_results = [read_results(path) for path in files]
    evaluations = [evaluate_results(ground_truth, results, "segm") for results in all_results]
    all_scores = [score_boundaries(ground_truth, results, tolerance) for results in all_results]
    common = set.intersection(*(set(scores) for scores in all_scores))
    return [
        {
            "results": path,
            "AP": evaluation.ap(),
            **{f"AP{round(100 * iou)}": evaluation.ap(iou) for iou in IOUS},
            "found": len(scores),
            "boundary F": _average(list(scores.values())),
            "F common": _average([scores[key] for key in common]),
        }
        for path, evaluation, scores in zip(files, evaluations, all_scores, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, metavar="NAME[=JSON:IMAGES]")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        help="allowed distance of contours, as a share of the image's diagonal (%(default)s)",
    )
    parser.add_argument("results", nargs="+", metavar="RESULTS.json")
    args = parser.parse_args()
    print(format_table(compare(read_ground_truth(args.dataset), args.results, args.tolerance)))


def _average(values: list[float]) -> float:
    return 100 * statistics.fmean(values) if values else float("nan")


if __name__ == "__main__":
    try:
        main()
    except ZooError as error:
        sys.exit(f"error: {error}")
