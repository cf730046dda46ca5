"""train_net.py as a user starts it: own JSON, several processes, kill and resume, bad input."""

import errno
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from instancezoo.checkpoint.reader import read_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
TRAIN_NET = str(REPOSITORY / "train_net.py")
TINY = str(REPOSITORY / "configs" / "mask_rcnn" / "mask_rcnn_tiny.yaml")


# Gets a signal before the fourth step; of several processes only the last one does.
SIGNALLED_RUN = """
import os, runpy, signal, sys
from detectron2.utils import comm
from instancezoo.engine.step import StepTrainer
take_step = StepTrainer.run_step
def take_step_or_die(trainer):
    if trainer.iter == 3 and comm.get_rank() == comm.get_world_size() - 1:
        os.kill(os.getpid(), signal.{})
    take_step(trainer)
StepTrainer.run_step = take_step_or_die
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def arguments(few_shapes, narrow_model):
    """A run of five small iterations on the user's own JSON."""
    metadata = MetadataCatalog.get(few_shapes)
    dataset = f"mine={metadata.json_file}:{metadata.image_root}"
    overrides = [
        *("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", *map(str, narrow_model)),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "5", "SOLVER.STEPS", "(4,)"),
        *("SOLVER.CHECKPOINT_PERIOD", "1", "TEST.NUM_PICTURES", "2"),
    ]
    return ["--config-file", TINY, "--dataset", dataset, *overrides]


def _environment():
    path = os.pathsep.join([str(REPOSITORY / "projects"), os.environ.get("PYTHONPATH", "")])
    # On CPUs, where the same steps give the same bits and two processes need no second GPU
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _run(*arguments, launcher=(TRAIN_NET,)):
    command = [sys.executable, *map(str, [*launcher, *arguments])]
    return subprocess.run(
        command, capture_output=True, text=True, env=_environment(), timeout=900, check=False
    )


@pytest.fixture(scope="module")
def whole_run(arguments, tmp_path_factory):
    """The output folder of a run from the first to the last iteration."""
    folder = tmp_path_factory.mktemp("whole")
    run = _run(*arguments, "OUTPUT_DIR", folder)
    assert run.returncode == 0, run.stderr
    return folder


def _read_metrics(folder):
    return json.loads((folder / "inference" / "mine" / "metrics.json").read_text())


def test_trains_and_evaluates_on_an_own_json(arguments, whole_run, tmp_path):
    metrics = _read_metrics(whole_run)
    assert metrics["num_images"] == 6
    assert len(list((whole_run / "inference" / "mine" / "pictures").glob("*.png"))) == 4
    config = (whole_run / "config.yaml").read_text()
    assert "MASK_OUTPUT: bitmask" in config, "the user's, not that of the evaluation"
    assert read_checkpoint(str(whole_run / "model_final.pth"))["cfg"] == config
    weights = ("MODEL.WEIGHTS", whole_run / "model_final.pth", "OUTPUT_DIR", tmp_path)
    impossible = ("TEST.EXPECTED_RESULTS", "[['segm', 'AP', 200.0, 1.0]]")
    again = _run("--eval-only", *arguments, *weights, *impossible)
    assert _read_metrics(tmp_path) == metrics
    assert again.returncode == 1
    assert "Result verification failed" in again.stdout + again.stderr


def test_two_processes_on_cpus_share_the_batch_and_stop_together(arguments, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = tmp_path / "run.py"
    script.write_text(SIGNALLED_RUN.format("SIGTERM"))
    arguments = [*arguments, "SOLVER.CHECKPOINT_PERIOD", "100", "OUTPUT_DIR", tmp_path / "run"]
    stopped = _run(TRAIN_NET, *arguments, launcher=[*launcher, script])
    assert stopped.returncode == 1, "torchrun's own"
    assert stopped.stderr.count("stopped after 4 of 5 iterations, saved as") == 1, stopped.stderr
    run = _run("--resume", *arguments, launcher=[*launcher, TRAIN_NET])
    assert run.returncode == 0, run.stderr
    assert _read_metrics(tmp_path / "run")["num_images"] == 6
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.findall(r"Starting training from iteration (\d+)", log) == ["0", "4"]


def test_stopped_run_resumes_to_the_same_weights(arguments, whole_run, tmp_path):
    arguments = [*arguments, "SOLVER.CHECKPOINT_PERIOD", "100", "OUTPUT_DIR", tmp_path]
    stopped = _run(TRAIN_NET, *arguments, launcher=["-c", SIGNALLED_RUN.format("SIGTERM")])
    assert stopped.returncode == 143
    last = f"stopped after 4 of 5 iterations, saved as {tmp_path}/model_0000003.pth."
    assert stopped.stderr.endswith(f"{last} --resume continues\n")
    assert "Traceback" not in stopped.stderr
    resumed = _run("--resume", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    log = (tmp_path / "log.txt").read_text()
    assert re.findall(r"Starting training from iteration (\d+)", log) == ["0", "4"]
    ours = read_checkpoint(str(tmp_path / "model_final.pth"))["model"]
    theirs = read_checkpoint(str(whole_run / "model_final.pth"))["model"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "override,key",
    [
        (("SOLVER.BASE_RL", "0.1"), "SOLVER.BASE_LR"),
        (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN"),
    ],
)
def test_bad_config_is_one_line(arguments, override, key, tmp_path, monkeypatch):
    words = [*arguments, *override, "OUTPUT_DIR", str(tmp_path)]
    assert key in _find_error(monkeypatch, *words)


def _find_error(monkeypatch, *words):
    """The line that train_net.py ends with."""
    monkeypatch.setattr(sys, "argv", ["train_net.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(TRAIN_NET, run_name="__main__")
    assert ended.value.code.startswith("error: ") and "\n" not in ended.value.code
    return ended.value.code


def test_a_folder_that_cannot_be_written_is_one_line(arguments, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    line = _find_error(monkeypatch, *arguments, "OUTPUT_DIR", str(tmp_path / "file"))
    assert f"OUTPUT_DIR {tmp_path}/file" in line

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    line = _find_error(monkeypatch, *arguments, "OUTPUT_DIR", str(tmp_path / "run"))
    assert re.search(r"run/run\.json: No space left on device$", line)


def test_missing_weights_are_one_line_and_no_traceback(arguments, tmp_path):
    run = _run(*arguments, "MODEL.WEIGHTS", "nowhere.pth", "OUTPUT_DIR", tmp_path)
    assert run.returncode == 1
    assert "nowhere.pth" in run.stderr.strip().splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert "Warning" not in run.stderr
