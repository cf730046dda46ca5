"""A run's traces in its output folder beside the checkpoints: lock, record, best weights."""

from __future__ import annotations

import math
import os
from typing import Any

from detectron2.utils import comm

from instancezoo.checkpoint.checkpointer import ZooCheckpointer, is_whole
from instancezoo.checkpoint.reader import read_checkpoint
from instancezoo.checkpoint.run_record import RunRecord
from instancezoo.errors import ZooError
from instancezoo.files import lock_folder, remove_leftovers


def lock_output(folder: str) -> None:
    """Lock an output folder for this run; every process must call it.

    Raises:
        ZooError: another run holds it, or it cannot be written; in all processes.
    """
    problem = ""
    if comm.is_main_process():
        try:
            lock_folder(folder)
            remove_leftovers(folder)
        except ZooError as error:
            problem = str(error)
    if problem := comm.all_gather(problem)[0]:
        raise ZooError(problem)


def begin_run(folder: str) -> str:
    """Record a new run: earlier ones in the folder are not resumed from any more. Returns its id.

    Only the main process, which saves, records and returns one; the others return "".
    """
    if not comm.is_main_process():
        return ""
    record = RunRecord()
    record.write(folder)
    return record.run


def continue_run(folder: str, run: str, start_iter: int) -> None:
    """Record that a run goes on.

    Args:
        folder: its output folder.
        run: its id, "" for one that has none.
        start_iter: iterations that are done; evaluations after more of them do not count.
    """
    if run and comm.is_main_process():
        RunRecord(run, min(RunRecord.read(folder).evaluated, start_iter)).write(folder)


class Evaluations:
    """What a training run keeps of its evaluations: the best weights, and which were finished.

    Args:
        trainer: whose `evaluated_model` is saved as `OUTPUT_DIR/model_best.pth`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._folder = trainer.cfg.OUTPUT_DIR
        self._metric = trainer.cfg.TEST.BEST_METRIC

    def is_finished(self, done: int) -> bool:
        """Return whether that after `done` iterations was finished; the same in all processes."""
        return bool(comm.all_gather(RunRecord.read(self._folder).evaluated >= done)[0])

    def finish(self, done: int) -> None:
        """Record that the evaluation after `done` iterations, and what follows, is finished."""
        RunRecord(self._facts.get("run", ""), done).write(self._folder)

    def save_best(self, value: float, done: int) -> None:
        """Save the evaluated weights, with the value of the metric after `done` iterations."""
        model = self._trainer.evaluated_model
        best = ZooCheckpointer(getattr(model, "module", model), self._folder, facts=self._facts)
        facts = {"metric": self._metric, "value": value}
        best.save_untagged("model_best", iteration=done - 1, **facts)

    def read_best(self, start_iter: int) -> float:
        """Read the value of the best weights before an iteration; -inf if there are none."""
        path = os.path.join(self._folder, "model_best.pth")
        best = read_checkpoint(path) if os.path.isfile(path) and is_whole(path) else {}
        # The file may be that of an older, longer run.
        is_same_run = best.get("run", "") == self._facts.get("run", "")
        is_ours = is_same_run and best.get("iteration", start_iter) < start_iter
        return float(best["value"]) if is_ours and best["metric"] == self._metric else -math.inf

    @property
    def _facts(self) -> dict[str, Any]:
        return self._trainer.checkpointer.facts
