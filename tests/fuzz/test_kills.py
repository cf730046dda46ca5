"""Killed at any moment and resumed, a run ends as an unbroken one: weights, evaluation, best.

FUZZ_CASES sets the number of kills, a third each in training, evaluation and saving; `make fuzz`
makes 60.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fuzz.killed_run import PHASES, REPOSITORY, Kill, run

from instancezoo.checkpoint.reader import read_checkpoint
from instancezoo.data.shapes import ANNOTATION_FILE, IMAGE_FOLDER, SHAPES_SETS, generate_shapes

NUM_KILLS = int(os.environ.get("FUZZ_CASES", "2"))
NUM_BLOCKS = max(1, NUM_KILLS // 20)  # for several processes
KILLED = -signal.SIGALRM


class Runs:
    """Runs of one tiny training, each forked from a process that has imported everything."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.fuzz.killed_run"])

    def start(
        self,
        name: str,
        *,
        resume: bool = False,
        kill: Kill | None = None,
        durations: Path | None = None,
    ) -> int:
        """Run to the end or the kill. Returns the exit code."""
        words = [*(["--resume"] if resume else []), *self.arguments]
        words += ["OUTPUT_DIR", str(self.folder / name)]
        log = self.folder / f"{name}.txt"
        process = self.context.Process(target=run, args=(words, log, kill, durations))
        process.start()
        process.join(timeout=300)
        assert process.exitcode in (0, KILLED), log.read_text()[-3000:]
        return process.exitcode


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, narrow_model: list[object]) -> Runs:
    folder = tmp_path_factory.mktemp("kills")
    shapes = SHAPES_SETS["shapes_tiny_train"]
    style = replace(shapes.style, size=64, radius=(8.0, 16.0))
    (folder / "data").mkdir()
    generate_shapes(replace(shapes, style=style, num_images=8, seed=5), folder / "data")
    dataset = f"mine={folder / 'data' / ANNOTATION_FILE}:{folder / 'data' / IMAGE_FOLDER}"
    overrides = [
        *("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)", "MODEL.DEVICE", "cpu"),
        *("INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", "48", *map(str, narrow_model)),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "7", "SOLVER.STEPS", "(5,)"),
        *("SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "3", "TEST.NUM_PICTURES", "2"),
        *("TEST.VALIDATION_LOSS", "True", "DATALOADER.NUM_WORKERS", "0", "SEED", "7"),
    ]
    config = REPOSITORY / "configs" / "mask_rcnn" / "mask_rcnn_tiny.yaml"
    return Runs(["--config-file", str(config), "--dataset", dataset, *overrides], folder)


@pytest.fixture(scope="module")
def durations(runs: Runs) -> dict[str, list[float]]:
    """Seconds of each call of each phase in the unbroken run "whole"."""
    measured = runs.folder / "durations"
    assert runs.start("whole", durations=measured) == 0
    found = defaultdict(list)
    for line in measured.read_text().splitlines():
        phase, seconds = line.split()
        found[phase].append(float(seconds))
    return found


@pytest.mark.parametrize("seed", range(NUM_BLOCKS))
def test_killed_runs_end_as_unbroken_ones(
    seed: int, runs: Runs, durations: dict[str, list[float]]
) -> None:
    whole = read_outcome(runs.folder / "whole")
    rng = random.Random(seed)
    kills: Counter[str] = Counter()
    number = 0
    while sum(kills.values()) < NUM_KILLS // NUM_BLOCKS:
        number += 1
        name = f"broken{seed}_{number}"
        story = kill_repeatedly(rng, runs, name, durations, kills)
        assert runs.start(name, resume=True) == 0
        outcome = read_outcome(runs.folder / name)
        differing = [key for key in whole if not is_same(outcome[key], whole[key])]
        assert not differing, f"{differing} after {story}"
        shutil.rmtree(runs.folder / name)
        print(f"{dict(kills)} kills in {number} runs", flush=True)


def kill_repeatedly(
    rng: random.Random,
    runs: Runs,
    name: str,
    durations: dict[str, list[float]],
    kills: Counter[str],
) -> list[Kill]:
    """Kill a run, and its continuation with a chance of a half, and so on. Counts by phase."""
    story: list[Kill] = []
    while not story or rng.random() < 0.5:
        phase = min(PHASES, key=lambda phase: (kills[phase], rng.random()))
        count = rng.randint(1, max(1, len(durations[phase]) // (1 + len(story))))
        # Beyond the end too: between a file and the note that it is whole
        delay = rng.uniform(0, 1.3) * durations[phase][count - 1]
        kill = Kill(phase, count, delay)
        if runs.start(name, resume=bool(story), kill=kill) != KILLED:
            break  # it had ended before
        story.append(kill)
        kills[phase] += 1
    return story


def read_outcome(folder: Path) -> dict[str, Any]:
    """What a run leaves: everything in its two checkpoints, and its evaluation."""
    hidden = {path.name for path in folder.rglob(".*") if not path.is_dir()}
    assert hidden == {".lock"}, "leftovers of killed writers"
    outcome = {
        name: read_checkpoint(str(folder / f"{name}.pth")) for name in ("model_final", "model_best")
    }
    for checkpoint in outcome.values():
        del checkpoint["run"], checkpoint["cfg"]  # its id; its folder
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    results = folder / "inference" / "mine"
    outcome["metrics"] = json.loads((results / "metrics.json").read_text())
    outcome["results"] = (results / "coco_instances_results.json").read_text()
    outcome["pictures"] = sorted(path.name for path in (results / "pictures").iterdir())
    return outcome


def is_same(first: Any, second: Any) -> bool:
    """Equal to the bit, in nested dicts and lists."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(is_same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(is_same, first, second))
    return bool(first == second)
