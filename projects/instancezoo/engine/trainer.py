"""The trainer of all methods, on Detectron2's `DefaultTrainer`."""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, cast

import torch
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from instancezoo.checkpoint.checkpointer import ZooCheckpointer, use_average
from instancezoo.data.images import ImageReader
from instancezoo.data.mappers import build_mapper
from instancezoo.engine.classes import check_room_for, find_classes
from instancezoo.engine.failures import describe_other_optimizer, find_cause
from instancezoo.engine.hooks import Checkpoints, Evaluate, ProgressBar, compute_mean_losses
from instancezoo.engine.loader import (
    EndlessBatchSampler,
    build_test_loader,
    build_train_loader,
    make_validation_config,
    seed_rng,
)
from instancezoo.engine.optimizer import build_optimizer
from instancezoo.engine.output import Evaluations, begin_run, continue_run
from instancezoo.engine.step import (
    NonFiniteLossError,
    OtherOptimizerError,
    StepTrainer,
    find_precision,
)
from instancezoo.engine.stop import STOP, Interrupted
from instancezoo.errors import ConfigError, ZooError, check_choice
from instancezoo.evaluation.average_precision import BACKENDS
from instancezoo.evaluation.evaluator import InstanceEvaluator
from instancezoo.files import open_atomically
from instancezoo.inference.test_time_augmentation import ModelWithTTA, keep_original_sizes
from instancezoo.modeling.masks import mask_output_set

logger = logging.getLogger(__name__)
WRITE_PERIOD = 20  # iterations between two lines of metrics


class Trainer(DefaultTrainer):
    """Trains any config; interrupted and resumed, it takes the same steps as uninterrupted.

    The random numbers of an iteration depend only on the seed and its number. With `SEED` -1 a
    random seed is chosen once and kept in the checkpoints.

    Args:
        cfg: a config from `instancezoo.get_cfg()`.
    """

    def __init__(self, cfg: Any) -> None:
        TrainerBase.__init__(self)
        for name in ("detectron2", "instancezoo"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        # Now, not after the last iteration.
        check_choice("TEST.COCO_BACKEND", cfg.TEST.COCO_BACKEND, BACKENDS)
        if cfg.TEST.VALIDATION_LOSS and cfg.DATASETS.TEST:
            make_validation_config(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        seed_rng(self.seed)  # initial weights
        model = self.build_model(cfg)
        device_type = torch.device(cfg.MODEL.DEVICE).type
        self._trainer = StepTrainer(
            create_ddp_model(
                model,
                broadcast_buffers=False,
                device_ids=None if device_type == "cpu" else [comm.get_local_rank()],
            ),
            self.build_train_loader(cfg, self.seed),
            self.build_optimizer(cfg, model),
            precision=find_precision(cfg),
            device_type=device_type,
        )
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        classes = find_classes(cfg.DATASETS.TRAIN)
        check_room_for(classes, model)
        self.checkpointer = ZooCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=cfg.MODEL.WEIGHTS_ALLOW_PARTIAL,
            allow_non_finite=cfg.MODEL.WEIGHTS_ALLOW_NON_FINITE,
            classes=classes,
            facts={"cfg": cfg.dump(), **classes.to_facts()},
            trainer=weakref.proxy(self),
        )
        self.ema: AveragedModel | None = None
        if cfg.MODEL.EMA.ENABLED:
            step = get_ema_multi_avg_fn(cfg.MODEL.EMA.DECAY)
            self.ema = AveragedModel(model, multi_avg_fn=step).eval()
            self.checkpointer.add_checkpointable("ema", self.ema)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @property
    def bare_model(self) -> nn.Module:
        """The trained model without its distributed wrapper."""
        return cast(nn.Module, getattr(self.model, "module", self.model))

    @property
    def evaluated_model(self) -> nn.Module:
        """The model to evaluate: the averaged one if there is one, else the trained one."""
        return cast(nn.Module, self.model if self.ema is None else self.ema.module)

    def build_hooks(self) -> list[HookBase | None]:
        """Build Detectron2's default hooks with ours among them."""
        cfg = self.cfg
        built: list[HookBase | None] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if self.ema is not None:
            update, model = self.ema.update_parameters, self.bare_model
            built.append(hooks.CallbackHook(after_step=lambda _: update(model)))
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            # before the checkpoint, so that it holds the precise statistics
            loader = self.build_train_loader(cfg, self.seed)
            period, num_iter = cfg.TEST.EVAL_PERIOD, cfg.TEST.PRECISE_BN.NUM_ITER
            built.append(hooks.PreciseBN(period, self.model, loader, num_iter))
        if comm.is_main_process():
            built.append(Checkpoints(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        if cfg.DATASETS.TEST:
            period, best_metric = cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC
            built.append(Evaluate(period, self._evaluate, best_metric, Evaluations(self)))
        if comm.is_main_process():
            built += [ProgressBar(), hooks.PeriodicWriter(self.build_writers(), WRITE_PERIOD)]
        return built

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the newest whole checkpoint of `OUTPUT_DIR`, or load `MODEL.WEIGHTS`.

        Without `resume` a new run begins, from which alone `OUTPUT_DIR` is resumed afterwards.

        Raises:
            CheckpointError: the file cannot be read or does not fit.
            ConfigError: it is resumed with another optimizer, or other trained parameters.
        """
        path = self.checkpointer.get_checkpoint_file() if resume else ""
        if path:
            self._resume(path)
        else:
            if resume:
                text = "NOTHING TO RESUME in OUTPUT_DIR %s: starting from iteration 0"
                logger.warning(text, self.cfg.OUTPUT_DIR)
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            self.checkpointer.facts["run"] = begin_run(self.cfg.OUTPUT_DIR)
        if self.ema is not None and not int(self.ema.n_averaged):
            # the average starts from the loaded weights
            self.ema.module.load_state_dict(self.bare_model.state_dict())

    def _resume(self, path: str) -> None:
        try:
            rest = self.checkpointer.load(path)
        except OtherOptimizerError as error:
            raise ConfigError(describe_other_optimizer(path, self.cfg, error)) from error
        self.start_iter = self.iter + 1
        self.checkpointer.facts["run"] = run = rest.get("run", "")
        comm.synchronize()  # before the record changes, by which the others find the checkpoint
        continue_run(self.cfg.OUTPUT_DIR, run, self.start_iter)
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if isinstance(sampler, EndlessBatchSampler):
            sampler.state.seed, sampler.state.start_iter = self.seed, self.start_iter
        else:
            logger.warning("the data loader cannot resume: it starts again from its beginning")

    def run_step(self) -> None:
        """Run one iteration. Raises `NonFiniteLossError` after saving a report about it."""
        seed_rng(self.seed, self.iter, comm.get_rank())
        self._trainer.iter = self.iter
        try:
            self._trainer.run_step()
        except NonFiniteLossError as error:
            raise self._explain_non_finite(error) from None

    def train(self) -> Any:
        """Train to `SOLVER.MAX_ITER`. Returns the last evaluation's results, None without one.

        Raises:
            Interrupted: a signal that `STOP` catches; a checkpoint of the last iteration is saved.
            ZooError: the training cannot go on, for a reason that the message tells.
        """
        logger.info("Starting training from iteration %d", self.start_iter)
        self.iter = max(0, self.start_iter - 1)  # the last one done: evaluation may be due
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                self._run_iterations()
                self.iter = self.max_iter  # tells the hooks that it was reached
            except Exception as error:
                cause = find_cause(error)
                if isinstance(cause, ZooError | OSError):
                    logger.error("%s", cause)
                else:
                    logger.exception("iteration %d:", self.iter)
                raise cause from None
            finally:
                self.after_train()
        return getattr(self, "_last_eval_results", None)

    def _run_iterations(self) -> None:
        with STOP.deferred():
            for iteration in range(self.start_iter, self.max_iter):
                self.iter = iteration
                self.before_step()
                self.run_step()
                try:
                    self.after_step()
                    STOP.check()
                except Interrupted as stop:
                    raise self._save_interrupted(stop) from None

    def _save_interrupted(self, stop: Interrupted) -> Interrupted:
        saver = next((hook for hook in self._hooks if isinstance(hook, Checkpoints)), None)
        if saver is None:  # the main process tells
            return Interrupted(stop.signum, "")
        with STOP.saving():
            path = saver.save_now(self.iter)
        done = f"after {self.iter + 1} of {self.max_iter} iterations"
        return Interrupted(stop.signum, f"stopped {done}, saved as {path}. --resume continues")

    @classmethod
    def evaluate_weights(cls, cfg: Any, resume: bool = False) -> dict[str, Any]:
        """Evaluate `MODEL.WEIGHTS` (with `resume` the newest checkpoint) on `DATASETS.TEST`.

        With `MODEL.EMA.ENABLED` the file's averaged weights are used, if it holds any.
        Raises `ConfigError` if there are no weights, `CheckpointError` if they do not fit the model
        or the classes of the data set.
        """
        model = cls.build_model(cfg)
        checkpointer = ZooCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=cfg.MODEL.WEIGHTS_ALLOW_PARTIAL,
            allow_non_finite=cfg.MODEL.WEIGHTS_ALLOW_NON_FINITE,
            classes=find_classes(cfg.DATASETS.TEST),
        )
        path = (resume and checkpointer.get_checkpoint_file()) or cfg.MODEL.WEIGHTS
        if not path:
            raise ConfigError(
                "no weights to evaluate: set MODEL.WEIGHTS, or --resume with the OUTPUT_DIR of a "
                "training run"
            )
        rest = checkpointer.load(path)
        if cfg.MODEL.EMA.ENABLED:
            use_average(model, rest, allow_non_finite=cfg.MODEL.WEIGHTS_ALLOW_NON_FINITE)
        return cls._test_both(cfg, model)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seed = state_dict["seed"]

    @classmethod
    def build_train_loader(cls, cfg: Any, seed: int | None = None) -> DataLoader[Any]:
        """Build the endless loader of `DATASETS.TRAIN`; see `engine/loader.py`."""
        if seed is None:
            seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        return build_train_loader(cfg, build_mapper(cfg, is_train=True), seed)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Iterable[Any]:
        """Build the loader of one test set: each image once, split among the processes.

        Images that cannot be mapped are left out, see `engine/loader.py`.
        """
        return build_test_loader(cfg, [dataset_name], build_mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(
        cls,
        cfg: Any,
        dataset_name: str,
        num_pictures: int | None = None,
        folder: str = "inference",
    ) -> DatasetEvaluator:
        """Build the COCO evaluation from RLE, written to `OUTPUT_DIR/<folder>/<data set>`.

        It counts all detections, so the limit per image is that of the model.
        """
        return InstanceEvaluator(
            dataset_name,
            backend=cfg.TEST.COCO_BACKEND,
            output_dir=os.path.join(cfg.OUTPUT_DIR, folder, dataset_name),
            num_pictures=cfg.TEST.NUM_PICTURES if num_pictures is None else num_pictures,
            reader=ImageReader.from_config(cfg),
            dsb_thresh=cfg.TEST.DSB_SCORE_THRESH if cfg.TEST.DSB_SCORE else None,
        )

    @classmethod
    def test(
        cls,
        cfg: Any,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluate a model on `DATASETS.TEST`, as `DefaultTrainer.test`.

        For our evaluators the model returns RLE, whatever MODEL.MASK_OUTPUT says: full-size masks
        are never built. Others get what the config asks for.
        """
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        listed = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        is_ours = all(isinstance(evaluator, InstanceEvaluator) for evaluator in listed)
        with mask_output_set(model, "rle") if is_ours else nullcontext():
            return cast(dict[str, Any], super().test(cfg, model, listed))

    @classmethod
    def test_with_TTA(cls, cfg: Any, model: nn.Module) -> dict[str, Any]:
        """Evaluate with the copies of `TEST.AUG`, see `ModelWithTTA`; the name is Detectron2's.

        Returns:
            As `test`, with "_TTA" behind the first names. Files are in `OUTPUT_DIR/inference_TTA`.
        """
        logger.info("evaluation with test-time augmentation")
        evaluators = [
            cls.build_evaluator(cfg, name, num_pictures=0, folder="inference_TTA")
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(keep_original_sizes(cfg), ModelWithTTA(cfg, model), evaluators)
        return {f"{name}_TTA": values for name, values in results.items()}

    @classmethod
    def _test_both(
        cls, cfg: Any, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluate a model as it is, and with TEST.AUG.ENABLED with augmentation too."""
        results = cls.test(cfg, model, evaluators)
        return {**results, **cls.test_with_TTA(cfg, model)} if cfg.TEST.AUG.ENABLED else results

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
        """Build `SOLVER.OPTIMIZER` with gradient clipping; see `engine/optimizer.py`."""
        return build_optimizer(cfg, model)

    def _evaluate(self, is_last: bool) -> dict[str, Any]:
        losses: dict[str, float] = {}
        if self.cfg.TEST.VALIDATION_LOSS:
            # proposals are sampled; resumed, they are the same
            seed_rng(self.seed, self.iter, comm.get_rank(), 1)
            losses = compute_mean_losses(self.model, self._build_validation_loader())
            if losses and comm.is_main_process():
                logger.info("validation loss %.4f", sum(losses.values()))
        num_pictures = self.cfg.TEST.NUM_PICTURES if is_last else 0
        evaluators = [
            self.build_evaluator(self.cfg, name, num_pictures) for name in self.cfg.DATASETS.TEST
        ]
        test = self._test_both if is_last else self.test
        self._last_eval_results = test(self.cfg, self.evaluated_model, evaluators)
        losses = {f"validation_{name}": value for name, value in losses.items()}
        return {**self._last_eval_results, **losses}

    def _build_validation_loader(self) -> Iterable[Any]:
        cfg = make_validation_config(self.cfg)
        return build_test_loader(cfg, list(cfg.DATASETS.TEST), build_mapper(cfg, is_train=True))

    def _keep_good(self) -> str:
        """Save the weights before this step. Returns where, or which checkpoint is still good."""
        if all(bool(v.isfinite().all()) for v in self.bare_model.state_dict().values()):
            self.checkpointer.save_untagged("model_last_good", iteration=self.iter - 1)
            path = os.path.join(self.cfg.OUTPUT_DIR, "model_last_good.pth")
            return f" and {path} (weights before this iteration)"
        last = self.checkpointer.get_checkpoint_file() or "none was saved yet"
        return f". The weights were not finite even before this step; last checkpoint: {last}"

    def _explain_non_finite(self, error: NonFiniteLossError) -> NonFiniteLossError:
        report = os.path.join(self.cfg.OUTPUT_DIR, f"non_finite_rank{comm.get_rank()}.json")
        losses = {name: str(value) for name, value in error.losses.items()}  # JSON has no NaN
        facts = {"iteration": self.iter, "losses": losses, "image_ids": error.image_ids}
        with open_atomically(report, "w") as file:
            json.dump(facts, file)
        error.args = (
            f"iteration {self.iter}: {error.args[0]}. Written: {report}{self._keep_good()}. Try "
            "SOLVER.BASE_LR divided by 10, more SOLVER.WARMUP_ITERS, "
            "SOLVER.CLIP_GRADIENTS.ENABLED True, SOLVER.AMP.ENABLED False; check these images "
            "with `instancezoo doctor`; use FrozenBN only with pretrained weights.",
        )
        return error
