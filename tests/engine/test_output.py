"""The output folder: whose checkpoints it holds, which evaluations are finished, one run a time."""

import logging
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from instancezoo.checkpoint.reader import read_checkpoint
from instancezoo.checkpoint.run_record import RECORD_NAME, RunRecord
from instancezoo.engine import Trainer
from instancezoo.engine.failures import LoaderDiedError
from instancezoo.errors import ConfigError


class Death(BaseException):
    """Ends a training where a kill would."""


def _train(cfg, resume):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    with suppress(Death):
        trainer.train()
    return trainer


@pytest.fixture
def evaluated(small_cfg, few_shapes, monkeypatch):
    """Config of four iterations with two evaluations; which ones ran; in which to die."""
    small_cfg.DATASETS.TEST = (few_shapes,)
    small_cfg.TEST.EVAL_PERIOD = 2
    ran, deadly = [], []

    def evaluate(trainer, is_last):
        done = trainer.iter + 1
        ran.append((done, is_last))
        if done in deadly:
            raise Death
        return {"segm": {"AP": float(done)}}

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    return small_cfg, ran, deadly


@pytest.mark.parametrize("killed_in", [2, 4])
def test_an_evaluation_that_was_cut_short_is_made_on_resume(evaluated, killed_in):
    cfg, ran, deadly = evaluated
    deadly.append(killed_in)
    _train(cfg, resume=False)
    assert ran[-1][0] == killed_in
    ran.clear()
    deadly.clear()
    _train(cfg, resume=True)
    assert ran == [(done, done == 4) for done in (2, 4) if done >= killed_in]
    best = read_checkpoint(f"{cfg.OUTPUT_DIR}/model_best.pth")
    assert (best["iteration"], best["value"]) == (3, 4.0)
    ran.clear()
    _train(cfg, resume=True)
    assert ran == [], "everything is done"


def test_a_finished_evaluation_of_iterations_that_were_lost_does_not_count(evaluated):
    cfg, ran, _ = evaluated
    _train(cfg, resume=False)
    for name in ("model_final.pth", "model_0000003.pth"):
        Path(cfg.OUTPUT_DIR, name).unlink()
    ran.clear()
    _train(cfg, resume=True)
    assert ran == [(4, True)]


def test_final_weights_that_a_kill_prevented_are_saved_on_resume(small_cfg):
    trainer = _train(small_cfg, resume=False)
    folder = Path(small_cfg.OUTPUT_DIR)
    whole = read_checkpoint(str(folder / "model_final.pth"))
    (folder / "model_final.pth").unlink()
    trainer.checkpointer.tag_last_checkpoint("model_0000003.pth")
    _train(small_cfg, resume=True)
    again = read_checkpoint(str(folder / "model_final.pth"))
    assert again["iteration"] == whole["iteration"] == 3
    assert again["trainer"]["iteration"] == whole["trainer"]["iteration"]
    assert all(torch.equal(again["model"][k], v) for k, v in whole["model"].items())
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_a_new_run_is_not_resumed_from_the_old_one(small_cfg, caplog):
    _train(small_cfg, resume=False)
    folder = Path(small_cfg.OUTPUT_DIR)
    old = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth")}
    Trainer(small_cfg).resume_or_load(resume=False)  # killed before its first checkpoint
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(small_cfg)
        trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert re.search(r"model_final\.pth.*earlier run.*run\.json", caplog.text)
    assert f"NOTHING TO RESUME in OUTPUT_DIR {folder}" in caplog.text
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pth")} == old
    (folder / RECORD_NAME).unlink()
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4


def test_the_best_weights_of_an_older_run_do_not_count(evaluated):
    cfg, _, deadly = evaluated
    _train(cfg, resume=False)  # its best is of iteration 4, with the value 4
    deadly.append(4)
    _train(cfg, resume=False)
    deadly.clear()
    run = RunRecord.read(cfg.OUTPUT_DIR).run
    _train(cfg, resume=True)
    assert read_checkpoint(f"{cfg.OUTPUT_DIR}/model_best.pth")["run"] == run


def test_runs_without_a_record_are_resumed(small_cfg):
    """Those of older versions: no record, no id in the checkpoints."""
    trainer = Trainer(small_cfg)
    trainer.checkpointer.load("")
    trainer.checkpointer.save("model_0000001", iteration=1)
    resumed = Trainer(small_cfg)
    trainer.iter = 1
    trainer.checkpointer.save("model_0000001", iteration=1)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert not Path(small_cfg.OUTPUT_DIR, RECORD_NAME).exists()


@pytest.mark.parametrize(
    "key,value",
    [("SOLVER.OPTIMIZER", "AdamW"), ("SOLVER.OPTIMIZER", "SGD"), ("MODEL.BACKBONE.FREEZE_AT", 3)],
)
def test_resume_with_another_optimizer_is_one_line(small_cfg, key, value):
    first = {"AdamW": "SGD", "SGD": "AdamW"}.get(value, "SGD")
    small_cfg.merge_from_list(["SOLVER.OPTIMIZER", first, "SOLVER.MAX_ITER", 1])
    _train(small_cfg, resume=False)
    small_cfg.merge_from_list([key, value, "SOLVER.MAX_ITER", 2])
    with pytest.raises(
        ConfigError, match=rf"model_final\.pth.*{key} was .*, is {value}.*MODEL\.WEIGHTS"
    ) as error:
        Trainer(small_cfg).resume_or_load(resume=True)
    assert "\n" not in str(error.value)


def test_a_killed_loader_is_one_line(small_cfg):
    small_cfg.DATALOADER.NUM_WORKERS = 1
    trainer = Trainer(small_cfg)
    step = trainer._trainer.run_step

    def kill_loader_before_step():
        if trainer.iter == 1:
            trainer._trainer._data_loader_iter._workers[0].kill()
        step()

    trainer._trainer.run_step = kill_loader_before_step
    with pytest.raises(LoaderDiedError, match=r"NUM_WORKERS") as error:
        trainer.train()
    assert "\n" not in str(error.value)
