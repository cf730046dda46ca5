"""The trainer: exact resume, averages, best checkpoint, bad losses."""

import json
import logging
import math
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from instancezoo.checkpoint import CheckpointError
from instancezoo.checkpoint.classes import ClassList
from instancezoo.checkpoint.description import read_description
from instancezoo.checkpoint.reader import read_checkpoint
from instancezoo.engine import Trainer
from instancezoo.engine.hooks import compute_mean_losses, flatten_metrics
from instancezoo.engine.step import NonFiniteLossError
from instancezoo.errors import ConfigError


def _train(cfg, resume=False, stop_after=None):
    """Total losses by iteration; `stop_after` ends it as a kill between two steps would."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    losses = {}
    step = trainer._trainer.run_step

    def run_step():
        if stop_after is not None and trainer.iter >= stop_after:
            raise KeyboardInterrupt
        step()
        losses[trainer.iter] = trainer.storage.latest()["total_loss"][0]

    trainer._trainer.run_step = run_step
    with suppress(KeyboardInterrupt):
        trainer.train()
    return losses, trainer


def _variant(cfg, name, *overrides):
    cfg = cfg.clone()
    cfg.merge_from_list(["OUTPUT_DIR", str(Path(cfg.OUTPUT_DIR).parent / name), *overrides])
    return cfg


@pytest.mark.parametrize("seed", [1, -1])
def test_resumed_training_takes_the_same_steps(small_cfg, seed):
    small_cfg.SEED = seed
    small_cfg.MODEL.EMA.ENABLED = True
    broken = _variant(small_cfg, "broken")
    before, stopped = _train(broken, stop_after=3)  # the checkpoint holds two iterations
    after, resumed = _train(broken, resume=True)
    assert sorted(after) == [2, 3] and after[2] == before[2]

    whole_cfg = _variant(small_cfg, "whole", "SEED", stopped.seed)
    whole, unbroken = _train(whole_cfg)
    assert {**before, **after} == whole
    for model in ("bare_model", "evaluated_model"):
        ours = getattr(resumed, model).state_dict()
        theirs = getattr(unbroken, model).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_average_follows_slowly_and_is_what_is_evaluated(small_cfg, few_shapes):
    cfg = _variant(small_cfg, "ema", "MODEL.EMA.ENABLED", True, "DATASETS.TEST", (few_shapes,))
    cfg.MODEL.EMA.DECAY = 0.5
    _, trainer = _train(cfg)
    name = next(name for name, p in trainer.bare_model.named_parameters() if p.requires_grad)
    averaged = trainer.evaluated_model.state_dict()[name]
    assert not torch.equal(averaged, trainer.bare_model.state_dict()[name])
    best = read_checkpoint(f"{cfg.OUTPUT_DIR}/model_best.pth")["model"]
    assert torch.equal(best[name], averaged)
    again = Trainer.evaluate_weights(_variant(cfg, "ema"), resume=True)
    assert flatten_metrics(again) == pytest.approx(
        flatten_metrics(trainer._last_eval_results), nan_ok=True
    )


def test_validation_loss_leaves_the_model_alone(small_cfg, few_shapes):
    cfg = _variant(small_cfg, "val", "DATASETS.TEST", (few_shapes,), "TEST.VALIDATION_LOSS", True)
    losses, _ = _train(cfg)
    plain, _ = _train(_variant(small_cfg, "plain"))
    assert losses == plain
    metrics = Path(cfg.OUTPUT_DIR, "metrics.json").read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    values = {k: v for line in lines for k, v in line.items() if k.startswith("validation_")}
    assert {"validation_loss_mask", "validation_loss_rpn_cls"} <= set(values)
    assert all(math.isfinite(v) for v in values.values())


def test_mean_losses_keep_batch_norm_and_modes():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, batch):
            return {"loss": self.norm(batch).sum() * 0 + batch.mean()}

    model = Model().eval()
    before = model.norm.running_mean.clone()
    losses = compute_mean_losses(model, [torch.ones(4, 2), torch.full((4, 2), 3.0)])
    assert losses == {"loss": 2.0}
    assert torch.equal(model.norm.running_mean, before) and not model.training


class _Explosive(nn.Module):
    """Gives a NaN loss at one iteration, and spoils its running statistics on the way."""

    def __init__(self, model, at):
        super().__init__()
        self.model, self.at, self.calls = model, at, 0

    def forward(self, batch):
        self.calls += 1
        if self.calls > self.at:
            for image in batch:
                image["image"] = image["image"] * float("nan")
            features = self.model.backbone.bottom_up(torch.stack([x["image"] for x in batch]))
            return {"loss_bad": sum(f.sum() for f in features.values())}
        return self.model(batch)


def test_non_finite_loss_stops_with_image_ids_and_good_weights(small_cfg):
    trainer = Trainer(small_cfg)
    trainer._trainer.model = _Explosive(trainer._trainer.model, at=2).train()
    logging.disable(logging.CRITICAL)
    try:
        with pytest.raises(NonFiniteLossError, match=r"iteration 2\b.*loss_bad.*nan.*BASE_LR"):
            trainer.train()
    finally:
        logging.disable(logging.NOTSET)
    report = json.loads(Path(small_cfg.OUTPUT_DIR, "non_finite_rank0.json").read_text())
    assert report["iteration"] == 2 and len(report["image_ids"]) == 2
    good = read_checkpoint(f"{small_cfg.OUTPUT_DIR}/model_last_good.pth")
    assert all(torch.isfinite(value).all() for value in good["model"].values())
    assert good["iteration"] == 1


def test_predictions_that_are_not_finite_stop_like_a_loss(small_cfg):
    trainer = Trainer(small_cfg)
    with torch.no_grad():  # Detectron2 notices it in the proposals, before any loss
        trainer.bare_model.proposal_generator.rpn_head.anchor_deltas.bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"iteration 0\b.*predictions.*nan.*BASE_LR"):
        trainer.train()
    report = json.loads(Path(small_cfg.OUTPUT_DIR, "non_finite_rank0.json").read_text())
    assert len(report["image_ids"]) == 2


def test_resumed_run_keeps_the_best_of_its_last_evaluation(small_cfg, few_shapes, monkeypatch):
    values = {1: 10.0, 2: 50.0, 3: 20.0, 4: 30.0}
    monkeypatch.setattr(
        Trainer, "_evaluate", lambda self, is_last: {"segm": {"AP": values[self.iter + 1]}}
    )
    cfg = _variant(small_cfg, "best", "DATASETS.TEST", (few_shapes,), "TEST.EVAL_PERIOD", 1)
    _train(cfg, stop_after=2)  # the checkpoint of iteration 2 is older than its evaluation
    _train(cfg, resume=True)
    best = read_checkpoint(f"{cfg.OUTPUT_DIR}/model_best.pth")
    assert (best["iteration"], best["value"]) == (1, 50.0)


def test_spoilt_weights_are_not_called_good(small_cfg):
    trainer = Trainer(small_cfg)
    with torch.no_grad():
        trainer.bare_model.proposal_generator.rpn_head.anchor_deltas.bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"iteration 0\b"):
        trainer.train()
    assert not Path(small_cfg.OUTPUT_DIR, "model_last_good.pth").exists()


@pytest.mark.parametrize(
    "overrides",
    [("TEST.COCO_BACKEND", "pyco"), ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "half")],
)
def test_unknown_choices_are_errors_before_training(small_cfg, overrides):
    with pytest.raises(ConfigError, match=overrides[-2]):
        Trainer(_variant(small_cfg, "bad", *overrides))


def test_bfloat16_trains(small_cfg):
    losses, _ = _train(_variant(small_cfg, "amp", "SOLVER.AMP.ENABLED", True))
    plain, _ = _train(_variant(small_cfg, "plain"))
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses.values())
    assert losses != plain


def test_unknown_optimizer_is_an_error(small_cfg):
    with pytest.raises(ConfigError, match=r"'Lion'.*SGD, AdamW"):
        Trainer(_variant(small_cfg, "bad", "SOLVER.OPTIMIZER", "Lion"))


@pytest.fixture
def renamed_shapes(few_shapes):
    """Registers the images of `few_shapes` with other class names, for the time of a test."""
    registered = []

    def register(name, classes):
        DatasetCatalog.register(name, lambda: DatasetCatalog.get(few_shapes))
        MetadataCatalog.get(name).set(thing_classes=classes)
        registered.append(name)
        return name

    yield register
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("averaged", [False, True])
def test_every_file_of_a_run_holds_its_config_and_classes(small_cfg, few_shapes, averaged):
    small_cfg.MODEL.EMA.ENABLED = averaged
    cfg = _variant(small_cfg, "named", "DATASETS.TEST", (few_shapes,), "SOLVER.MAX_ITER", 2)
    _, trainer = _train(cfg)
    trainer._keep_good()
    names = {path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")}
    assert names == {f"model_{n}.pth" for n in ("0000001", "final", "best", "last_good")}
    for name in names:
        description = read_description(f"{cfg.OUTPUT_DIR}/{name}")
        assert description.config_text == trainer.cfg.dump()
        assert description.classes == ClassList.from_metadata(MetadataCatalog.get(few_shapes))
        assert len(description.classes.category_ids) == 4


def test_weights_of_other_classes(small_cfg, few_shapes, renamed_shapes, caplog):
    cfg = _variant(small_cfg, "first", "SOLVER.MAX_ITER", 1)
    _train(cfg)
    classes = list(MetadataCatalog.get(few_shapes).thing_classes)
    swapped = renamed_shapes("swapped_shapes", [*classes[1::-1], *classes[2:]])
    other = renamed_shapes("other_shapes", [*classes[:3], "spiral"])
    weights = ["MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth"]

    def use(name, resume, train):
        sets = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]
        if train:
            Trainer(_variant(cfg, "first" if resume else "new", *weights, *sets)).resume_or_load(
                resume=resume
            )
        else:
            Trainer.evaluate_weights(_variant(cfg, "new", *weights, *sets))

    for resume, train in ((False, True), (True, True), (False, False)):
        with pytest.raises(CheckpointError, match=r"another order.*class 0"):
            use(swapped, resume, train)
    for resume, train in ((True, True), (False, False)):
        with pytest.raises(CheckpointError, match=r"class 3 is .* and 'spiral' here"):
            use(other, resume, train)
    caplog.clear()
    use(other, resume=False, train=True)
    assert caplog.text.count("and 'spiral' here") == 1


def test_a_model_with_too_few_classes_for_the_data_is_refused(small_cfg):
    small_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    with pytest.raises(ConfigError, match=r"model has 3 classes.*4 classes \(.*load_cfg"):
        Trainer(small_cfg)
