"""Hooks around the training steps: evaluation, best checkpoint, progress."""

from __future__ import annotations

import logging
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from instancezoo.engine.output import Evaluations
from instancezoo.engine.stop import STOP

logger = logging.getLogger(__name__)


class Checkpoints(hooks.PeriodicCheckpointer):
    """Saves every few iterations, after the last one, and on request."""

    def before_train(self) -> None:
        super().before_train()
        if self.trainer.start_iter != self.max_iter:
            return
        if Path(self.checkpointer.get_checkpoint_file()).stem != "model_final":  # killed before it
            self.checkpointer.save("model_final", iteration=self.max_iter - 1)

    def save_now(self, iteration: int) -> str:
        """Save after an iteration, unless `after_step` did. Returns the path of the checkpoint."""
        if iteration == self.max_iter - 1:
            name = "model_final"
        else:
            name = f"model_{iteration:07d}"
            if (iteration + 1) % self.period:
                self.checkpointer.save(name, iteration=iteration)
        return str(Path(self.checkpointer.save_dir) / f"{name}.pth")


@dataclass(eq=False)
class Evaluate(HookBase):
    """Evaluates every `period` iterations and after the last one; keeps the best weights.

    An evaluation that a kill cut short is made when training resumes.

    Args:
        period: iterations between evaluations; 0 evaluates only after the last iteration.
        evaluate: is_last -> results, a flat or nested dict of metrics.
        best_metric: "task/metric" whose highest value marks the best weights; "" keeps none. For a
            model without masks "segm/..." means "bbox/...".
        evaluations: keeps the best weights, and which evaluations were finished.
    """

    period: int
    evaluate: Callable[[bool], dict[str, Any]]
    best_metric: str
    evaluations: Evaluations
    best_value: float = field(default=-math.inf, init=False)

    def before_train(self) -> None:
        # A checkpoint is saved before its evaluation, so it does not hold its own result.
        done = self.trainer.start_iter
        if done == 0:
            return
        self.best_value = self.evaluations.read_best(done)
        if self._is_due(done) and not self.evaluations.is_finished(done):
            logger.info("the evaluation after %d iterations was cut short: evaluating now", done)
            self._run(done)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._is_due(done):
            self._run(done)

    def _is_due(self, done: int) -> bool:
        is_period = self.period > 0 and done % self.period == 0
        return done == self.trainer.max_iter or (is_period and done < self.trainer.max_iter)

    def _run(self, done: int) -> None:
        with STOP.deferred(False):  # resumed, it starts anew: its checkpoint is saved
            metrics = flatten_metrics(self.evaluate(done == self.trainer.max_iter))
            comm.synchronize()
        if comm.is_main_process():
            self.trainer.storage.put_scalars(cur_iter=done - 1, **metrics, smoothing_hint=False)
            self._keep_best(metrics, done)
            self.evaluations.finish(done)

    def _keep_best(self, metrics: dict[str, float], done: int) -> None:
        if not self.best_metric:
            return
        name = self.best_metric
        value = _find_metric(metrics, name)
        if value is None and not any("segm" in key.split("/") for key in metrics):
            name = name.replace("segm/", "bbox/")  # a model without masks
            value = _find_metric(metrics, name)
        if value is None:
            text = "TEST.BEST_METRIC '%s' is not among the results %s: no best checkpoint is kept"
            logger.warning(text, name, sorted(metrics))
        elif value > self.best_value:  # False for NaN
            logger.info("best %s so far: %.2f", name, value)
            self.best_value = value
            self.evaluations.save_best(value, done)


class ProgressBar(HookBase):
    """A bar with loss, iterations per second and remaining time, shown only on a terminal."""

    def __init__(self) -> None:
        self.bar: Any = None

    def before_train(self) -> None:
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=self.trainer.max_iter, initial=self.trainer.start_iter, desc="training"
            )
            self._mute(True)

    def after_step(self) -> None:
        if self.bar is not None:
            loss = self.trainer.storage.latest().get("total_loss", (math.nan, 0))[0]
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.bar.update()

    def after_train(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self._mute(False)

    def _mute(self, on: bool) -> None:
        # The metric lines would break the bar; the log file still gets them.
        for handler in logging.getLogger("detectron2").handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                (handler.addFilter if on else handler.removeFilter)(_is_no_metric_line)


def compute_mean_losses(model: nn.Module, loader: Iterable[Any]) -> dict[str, float]:
    """Compute the mean of each loss over all batches of all processes.

    Batch norm uses its running statistics, and the model keeps its state.

    Args:
        model: returns a dict of losses in training mode.
        loader: finite; lists of model inputs with `instances`.

    Returns:
        Loss name -> mean; empty if there was no batch.
    """
    was_training = {module: module.training for module in model.modules()}
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    sums: dict[str, float] = defaultdict(float)
    count = 0
    try:
        # A separate storage, so that the statistics of training stay as they are
        with torch.no_grad(), EventStorage():
            for batch in loader:
                count += 1
                for name, loss in model(batch).items():
                    sums[name] += float(loss)
    finally:
        for module, training in was_training.items():
            module.training = training
    parts = comm.all_gather((dict(sums), count))
    total = sum(part[1] for part in parts)
    names = sorted({name for part in parts for name in part[0]})
    return {name: sum(part[0].get(name, 0.0) for part in parts) / total for name in names}


def flatten_metrics(results: dict[str, Any]) -> dict[str, float]:
    """`{"segm": {"AP": 1.0}}` -> `{"segm/AP": 1.0}`; other values than numbers are left out."""
    flat = flatten_results_dict(results)
    return {name: float(value) for name, value in flat.items() if isinstance(value, int | float)}


def _find_metric(metrics: dict[str, float], name: str) -> float | None:
    """The figure of a name; of several test sets, whose names begin the keys, the first one's."""
    keys = (key for key in metrics if key == name or key.endswith(f"/{name}"))
    return next((metrics[key] for key in keys), None)


def _is_no_metric_line(record: logging.LogRecord) -> bool:
    return record.name != "detectron2.utils.events"
