"""A run of train_net.py with what it leaves in OUTPUT_DIR, made without training."""

import logging
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_stock_cfg

from instancezoo.engine import Trainer
from instancezoo.methods import METHODS
from instancezoo.testing import get_tiny_config, keep_everything, list_tiny_configs

TRAIN_NET = Path(__file__).resolve().parents[2] / "train_net.py"
SIZE = 64


@contextmanager
def _kept_loggers() -> Iterator[None]:
    """`default_setup` starts to write into the run's folder, and ends pytest's own capture."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "instancezoo")]
    before = [(each.propagate, each.level, list(each.handlers)) for each in loggers]
    try:
        yield
    finally:
        for logger, (propagate, level, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers
            logger.setLevel(level)


@pytest.fixture(scope="session")
def start_run(tmp_path_factory, few_shapes):
    """Starts a run of a tiny config with generous thresholds; returns its OUTPUT_DIR."""

    def start(name: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        few = [word for method in METHODS for word in (method.detection_limit, 8)]
        sets = ["DATASETS.TRAIN", (few_shapes,), "DATASETS.TEST", (few_shapes,)]
        sizes = ["INPUT.MIN_SIZE_TEST", SIZE, "SEED", 3]
        values = yaml.safe_load(keep_everything(get_tiny_config(name, few + sets + sizes)).dump())
        del values["MODEL"]["MASK_OUTPUT"]  # as most users, who leave it out
        file = folder / "mine.yaml"
        file.write_text(yaml.safe_dump(values))
        functions = runpy.run_path(str(TRAIN_NET), run_name="train_net")
        words = ["--config-file", str(file), "OUTPUT_DIR", str(folder)]
        with _kept_loggers():
            cfg = functions["setup"](functions["build_parser"]().parse_args(words))
            Trainer(cfg).checkpointer.save("model_final")
        return folder

    return start


@pytest.fixture(scope="session", params=list_tiny_configs())
def run_folder(request, start_run) -> Path:
    """OUTPUT_DIR of each tiny config."""
    return start_run(request.param)


@pytest.fixture
def client_cfg(run_folder) -> CfgNode:
    """Detectron2's own config with the file of a run, as clients of Detectron2 read it."""
    cfg = get_stock_cfg()
    cfg.set_new_allowed(True)
    cfg.merge_from_file(str(run_folder / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(run_folder / "model_final.pth")
    return cfg
