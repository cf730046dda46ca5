"""Two processes, each with a part of the images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from synthetic_results import make_dataset, make_outputs
from torch import multiprocessing

import instancezoo.evaluation.results as results_module
from instancezoo.evaluation import InstanceEvaluator
from instancezoo.evaluation.results import ResultsFile
from instancezoo.modeling.distributed import leave_process_group

SMALL = {"num_images": 10, "num_results": 60, "seed": 1}


def make_evaluator(folder: str) -> InstanceEvaluator:
    truth, _ = make_dataset(**SMALL)
    Path(folder).mkdir(exist_ok=True)
    path = Path(folder) / "truth.json"
    if not path.exists():
        path.write_text(json.dumps(truth))
    name = f"distributed {folder}"
    MetadataCatalog.get(name).json_file = str(path)
    return InstanceEvaluator(name, output_dir=f"{folder}/out")


def run_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results_module.CHUNK_BYTES = 500  # several rounds
    merge_uneven_parts(rank, folder)
    evaluator = make_evaluator(folder)
    outputs = list(make_outputs(make_dataset(**SMALL)))
    # one image comes twice
    for record, output in outputs[:8] if rank == 0 else outputs[7:]:
        evaluator.process([record], [output])
    metrics = evaluator.evaluate()
    assert list(metrics) == (["bbox", "segm"] if rank == 0 else [])
    leave_process_group()


def merge_uneven_parts(rank: int, folder: str) -> None:
    results = ResultsFile()
    for image_id in range(40) if rank == 0 else range(38, 43):
        results.append(image_id, [{"image_id": image_id}] * (image_id % 4))
    merged = results.gather()
    assert (merged is None) == (rank == 1)
    if merged is not None:
        whole = {image_id: len(rows) for image_id, rows in merged}
        (Path(folder) / "merged.json").write_text(json.dumps(whole))


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    single = make_evaluator(str(tmp_path / "single"))
    for record, output in make_outputs(make_dataset(**SMALL)):
        single.process([record], [output])
    expected = single.evaluate()
    (tmp_path / "truth.json").write_text((tmp_path / "single" / "truth.json").read_text())
    multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    merged = json.loads((tmp_path / "merged.json").read_text())
    assert merged == {str(image_id): image_id % 4 for image_id in range(43)}
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["num_images"] == 10
    for iou_type in ("bbox", "segm"):
        known = {key: value for key, value in written[iou_type].items() if value is not None}
        assert known["AP"] > 1
        assert known == pytest.approx({key: expected[iou_type][key] for key in known})
