"""A failure that comes from a config names its key; others pass unchanged."""

import math

import pytest
import torch
from detectron2.modeling.proposal_generator import RPN

from instancezoo import model_zoo
from instancezoo.config import get_cfg, load_cfg
from instancezoo.config_trial import check_builds
from instancezoo.doctor import Severity
from instancezoo.doctor.diagnose import diagnose
from instancezoo.errors import ConfigError
from instancezoo.testing import get_tiny_config
from instancezoo.trial import explain_failures

TINY = "mask_rcnn/mask_rcnn_tiny"
NO_DATA = ["DATASETS.TRAIN", (), "DATASETS.TEST", ()]


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("SOLVER.BASE_LR", None, r"must be a number, such as 0\.001"),
        ("SOLVER.BASE_LR", math.nan, "finite"),
        ("SOLVER.BASE_LR", 10**400, "finite"),
        ("SOLVER.BASE_LR", 1e308, "finite"),
        ("SOLVER.MAX_ITER", 10**30, "finite"),
        ("SOLVER.MAX_ITER", None, "a whole number"),
        ("SOLVER.STEPS", (5, math.nan), "finite"),
        ("SOLVER.STEPS", (5, "a"), "'a' does not belong"),
        ("SOLVER.STEPS", (9, 5), "ascending"),
        ("SOLVER.STEPS", ([5, 9],), "without lists"),
        ("DATASETS.TRAIN", (["few_shapes"],), "without lists"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "a", "a number"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1, "1e-06 or more"),
        ("SOLVER.REFERENCE_WORLD_SIZE", 3, "divide"),
        ("DATASETS.TRAIN", (None,), "None does not belong"),
        ("DATALOADER.NUM_WORKERS", 10**9, "between 0 and"),
        ("MODEL.META_ARCHITECTURE", None, "a text"),
        ("MODEL.MASK_ON", None, "True or False"),
        ("MODEL.RESNETS.DEPTH", 19, "one of: 18, 34"),
        ("MODEL.RESNETS.NORM", "bn", "one of: , BN"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False], "4 values"),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", (1.0,), "4 values"),
        ("MODEL.RPN.LOSS_WEIGHT", -1.0, "between 0 and"),
        ("MODEL.FPN.OUT_CHANNELS", 0, "between 1 and"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 10**9, "between 0 and 100"),
        ("INPUT.CROP.SIZE", [0.5], "2 values"),
        ("INPUT.CROP.SIZE", [2.0, 2.0], "up to 1"),
        ("INPUT.FIXED_SIZE", (5,), "0 or 2 values"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN is"),
        ("TEST.EXPECTED_RESULTS", [["segm"]], "'AP', 34.5"),
        # Found by building the parts:
        ("MODEL.RPN.IN_FEATURES", ["p9"], r"with \['p2'.*it works"),
        ("MODEL.RPN.IOU_LABELS", [0, 1], r"with \[0, -1, 1\] it works"),
        ("MODEL.FPN.IN_FEATURES", [], r"with \['res2'"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]], "it works"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(key, value, named):
    with pytest.raises(ConfigError, match=named) as error:
        load_cfg(model_zoo.get_config_file(TINY), [*NO_DATA, key, value])
    assert key in str(error.value)


def test_what_means_something_is_accepted():
    infinite = ["SOLVER.CLIP_GRADIENTS.NORM_TYPE", math.inf, "SOLVER.WEIGHT_DECAY_BIAS", 0.1]
    cfg = load_cfg(model_zoo.get_config_file(TINY), [*NO_DATA, *infinite])
    assert math.isinf(cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE)


def test_a_bad_value_in_the_file_is_found_too(tmp_path):
    file = tmp_path / "mine.yaml"
    base = model_zoo.get_config_file(TINY)
    file.write_text(f'_BASE_: "{base}"\nMODEL:\n  RPN:\n    IOU_LABELS: [0, 1]\n')
    with pytest.raises(ConfigError, match=r"MODEL\.RPN\.IOU_LABELS is \[0, 1\]"):
        load_cfg(str(file), NO_DATA)


def test_a_model_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("instancezoo.config_trial.measure_free_memory", lambda device: 10**9)
    with pytest.raises(ConfigError, match=r"MODEL\.ROI_BOX_HEAD\.FC_DIM is 60000.*GiB"):
        load_cfg(model_zoo.get_config_file(TINY), [*NO_DATA, "MODEL.ROI_BOX_HEAD.FC_DIM", 60000])


def test_two_keys_that_fail_together_are_listed():
    cfg = get_tiny_config(TINY)
    cfg.MODEL.RPN.IOU_LABELS, cfg.MODEL.ROI_HEADS.IOU_LABELS = [0, 1], [0]
    origin = get_tiny_config(TINY)
    with pytest.raises(ConfigError, match=r"MODEL\.RPN\.IOU_LABELS, MODEL\.ROI_HEADS\.IOU_LABELS"):
        check_builds(cfg, [origin])


def test_doctor_names_the_key(few_shapes):
    sets = ["DATASETS.TRAIN", (few_shapes,), "DATASETS.TEST", ()]
    file = model_zoo.get_config_file(TINY)
    findings = diagnose(file, [*sets, "MODEL.RPN.IOU_LABELS", [0, 1], "MODEL.WEIGHTS", ""])
    errors = [f.message for f in findings if f.severity is Severity.ERROR]
    assert any("MODEL.RPN.IOU_LABELS is [0, 1]" in message for message in errors)


def test_a_step_that_fails_by_the_config_names_the_key(monkeypatch):
    cfg = get_tiny_config(TINY, ["MODEL.RPN.SMOOTH_L1_BETA", 0.5])

    def refuse(self, *args, **kwargs):
        if self.smooth_l1_beta == 0.5:
            raise RuntimeError("no such beta")
        return {}

    monkeypatch.setattr(RPN, "losses", refuse)
    with (
        pytest.raises(ConfigError, match=r"SMOOTH_L1_BETA is 0\.5.*no such beta.*with 0\.0"),
        explain_failures(cfg, model_zoo.get_config_file(TINY)),
    ):
        raise RuntimeError("no such beta")


def test_other_failures_pass_unchanged():
    cfg = get_tiny_config(TINY)
    with pytest.raises(torch.OutOfMemoryError), explain_failures(cfg):
        raise torch.OutOfMemoryError("busy")
    with pytest.raises(OSError, match="full"), explain_failures(get_cfg()):
        raise OSError("disk full")
