"""Clipping of gradients, over each parameter or over all together."""

import pytest
import torch
from torch import nn

from instancezoo.config import get_cfg
from instancezoo.engine.optimizer import build_optimizer
from instancezoo.errors import ConfigError


def _step(name, clip_type, limit=1.0):
    """Changes of two parameters with gradients (3, 0) and (0, 4) after a step at rate 1."""
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = name, 1.0, 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clip_type is not None
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type or "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = limit
    cfg.freeze()
    model = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(2)])
    optimizer = build_optimizer(cfg, model)
    (3 * model[0][0] + 4 * model[1][1]).backward()
    optimizer.step()
    return [-parameter.detach() for parameter in model], [p.grad for p in model]


@pytest.mark.parametrize(
    "clip_type,limit,expected",
    [
        (None, 1.0, [3, 4]),
        ("value", 2.0, [2, 2]),
        ("norm", 2.0, [2, 2]),
        ("full_model", 2.0, [1.2, 1.6]),  # of a norm of 5
        ("full_model", 6.0, [3, 4]),
    ],
)
def test_sgd_steps_by_clipped_gradients(clip_type, limit, expected):
    steps, _ = _step("SGD", clip_type, limit)
    assert [float(steps[0][0]), float(steps[1][1])] == pytest.approx(expected, rel=1e-5)


def test_adamw_clips_too():
    _, gradients = _step("AdamW", "full_model", limit=1.0)
    assert torch.cat(gradients).norm() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_single_numbers_have_no_weight_decay(name):
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = name, 0.1, 0.5
    model = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(()))])
    optimizer = build_optimizer(cfg, model)
    (0 * model[0].sum() + 0 * model[1]).backward()
    optimizer.step()
    assert model[1] == 1 and (model[0] < 1).all()


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"'Adam'.*SGD, AdamW"):
        _step("Adam", None)
    with pytest.raises(ConfigError, match=r"CLIP_TYPE.*'all'.*full_model"):
        _step("SGD", "all")
