"""train_net.py as a user starts it: own JSON, several processes, kill and resume, bad input."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from instancezoo.checkpoint.reader import read_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = str(REPOSITORY / "configs" / "mask_rcnn" / "mask_rcnn_tiny.yaml")


@pytest.fixture
def arguments(few_shapes, tmp_path):
    """A run of four small iterations on the user's own JSON."""
    metadata = MetadataCatalog.get(few_shapes)
    dataset = f"mine={metadata.json_file}:{metadata.image_root}"
    overrides = [
        *("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)"),
        *("SOLVER.CHECKPOINT_PERIOD", "1", "TEST.NUM_PICTURES", "2"),
        *("OUTPUT_DIR", str(tmp_path / "run")),
    ]
    return ["--config-file", TINY, "--dataset", dataset, *overrides]


def _environment():
    path = os.pathsep.join([str(REPOSITORY / "projects"), os.environ.get("PYTHONPATH", "")])
    # On CPUs, where the same steps give the same bits and two processes need no second GPU
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _run(*arguments, launcher=()):
    command = [sys.executable, *launcher, str(REPOSITORY / "train_net.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=_environment(), timeout=900, check=False
    )


def test_trains_and_evaluates_on_an_own_json(arguments, tmp_path):
    run = _run(*arguments)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "run"
    metrics = json.loads((folder / "inference" / "mine" / "metrics.json").read_text())
    assert metrics["num_images"] == 6
    assert len(list((folder / "inference" / "mine" / "pictures").glob("*.png"))) == 4
    assert (folder / "model_final.pth").is_file()
    assert "MASK_OUTPUT: rle" in (folder / "config.yaml").read_text()
    weights = ("MODEL.WEIGHTS", str(folder / "model_final.pth"))
    impossible = ("TEST.EXPECTED_RESULTS", "[['segm', 'AP', 200.0, 1.0]]")
    again = _run("--eval-only", *arguments, *weights, *impossible)
    repeated = json.loads((folder / "inference" / "mine" / "metrics.json").read_text())
    assert repeated == metrics
    assert again.returncode == 1
    assert "Result verification failed" in again.stdout + again.stderr


def test_two_processes_on_cpus_share_the_batch(arguments, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    run = _run(*arguments, launcher=launcher)
    assert run.returncode == 0, run.stderr
    metrics = json.loads((tmp_path / "run" / "inference" / "mine" / "metrics.json").read_text())
    assert metrics["num_images"] == 6


def test_killed_run_resumes_to_the_same_weights(arguments, tmp_path):
    arguments += ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "12", "SOLVER.STEPS", "(9,)"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, str(REPOSITORY / "train_net.py"), *arguments]
    process = subprocess.Popen(
        [*command, "OUTPUT_DIR", str(killed)], env=_environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (killed / "model_0000002.pth").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model_final.pth").exists(), "it ended before it was killed"

    for folder, resume in ((killed, ["--resume"]), (whole, [])):
        run = _run(*resume, *arguments, "OUTPUT_DIR", str(folder))
        assert run.returncode == 0, run.stderr
    starts = re.findall(r"Starting training from iteration (\d+)", (killed / "log.txt").read_text())
    assert starts[0] == "0" and int(starts[1]) >= 3
    ours = read_checkpoint(str(killed / "model_final.pth"))["model"]
    theirs = read_checkpoint(str(whole / "model_final.pth"))["model"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "override,key",
    [
        (("SOLVER.BASE_RL", "0.1"), "SOLVER.BASE_LR"),
        (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN"),
    ],
)
def test_bad_config_is_one_line(arguments, override, key, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments, *override])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "train_net.py"), run_name="__main__")
    assert ended.value.code.startswith("error: ") and "\n" not in ended.value.code
    assert key in ended.value.code


def test_missing_weights_are_one_line_and_no_traceback(arguments):
    run = _run(*arguments, "MODEL.WEIGHTS", "nowhere.pth")
    assert run.returncode == 1
    assert "nowhere.pth" in run.stderr.strip().splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert "Warning" not in run.stderr
