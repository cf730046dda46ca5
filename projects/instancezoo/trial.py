"""A small training step and prediction, to tell a bad config from other failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from instancezoo.config import get_cfg
from instancezoo.config_trial import build_parts, explain_failure, strip_weights
from instancezoo.engine.optimizer import build_optimizer
from instancezoo.errors import ZooError
from instancezoo.testing import make_input

_SIDE, _BOX = 64, [8, 8, 40, 48]


@contextmanager
def explain_failures(cfg: Any, config_file: str = "") -> Iterator[None]:
    """Turn a failure that comes from a config into a `ConfigError` that names the key.

    Whether it does is seen by trying the config on a small picture. Other failures pass unchanged.

    Args:
        cfg: the whole config of what runs inside.
        config_file: that it was read from, "" for none.
    """
    try:
        yield
    except (ZooError, OSError):
        raise
    except Exception as error:  # whatever a part makes of a bad value
        try:
            try_config(cfg)
        except Exception as problem:  # as above
            raise explain_failure(cfg, problem, _list_origins(config_file), try_config) from error
        raise


def try_config(cfg: Any) -> None:
    """Train for one step and predict, on the CPU with random weights. Raises anything."""
    build_parts(cfg)
    cfg = strip_weights(cfg, "cpu")
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    image = make_input(_SIDE, _SIDE, [_BOX])
    channels = len(cfg.MODEL.PIXEL_MEAN)
    image["image"] = image["image"][:1].repeat(channels, 1, 1)
    with EventStorage():
        losses = model.train()([image, image])
    sum(losses.values()).backward()
    optimizer.step()
    with torch.no_grad():
        model.eval()([image])


def _list_origins(config_file: str) -> list[Any]:
    origins = [get_cfg()]
    if config_file:
        from_file = get_cfg()
        from_file.merge_from_file(config_file)
        origins.insert(0, from_file)
    return origins
