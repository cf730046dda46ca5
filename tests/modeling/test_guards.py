"""What every model says of a batch without images, and of numbers that are not finite."""

import math

import pytest
import torch
from torch import nn

from instancezoo.errors import ZooError
from instancezoo.modeling.guards import tell_non_finite
from instancezoo.testing import (
    build_seeded_model,
    get_tiny_config,
    keep_everything,
    list_tiny_configs,
    make_input,
)

SIZE = 64


@pytest.fixture(scope="module", params=list_tiny_configs())
def model(request):
    cfg = keep_everything(get_tiny_config(request.param, ["TEST.DETECTIONS_PER_IMAGE", 5]))
    return build_seeded_model(cfg)


def _predict(model, *images):
    with torch.no_grad():
        return model.eval()(list(images))


def test_no_image_has_no_result_and_no_losses(model):
    assert _predict(model) == []
    with pytest.raises(ZooError, match="at least one image"):
        model.train()([])


@pytest.mark.parametrize("pixel", [math.nan, math.inf])
def test_a_pixel_that_is_not_finite_is_told_with_its_image(model, pixel):
    good, bad = make_input(SIZE, SIZE, [], seed=0), make_input(SIZE, SIZE, [], seed=1)
    bad["image"] = bad["image"].float()
    bad["image"][1, 5, 7] = pixel
    with pytest.raises(ZooError, match=r"image_1\.png has pixels"):
        _predict(model, good, bad)


def test_weights_that_are_not_finite_are_told_with_the_image(model):
    """In each part of the model alone: scores, boxes and masks of NaN."""
    image = make_input(SIZE, SIZE, [], seed=3)
    named = [(n, m) for n, m in model.named_modules() if getattr(m, "weight", None) is not None]
    layers = [(n, m) for n, m in named if "bottom_up" not in n or "stem" in n]
    silent = []
    for name, layer in layers[:: max(1, len(layers) // 8)]:
        before = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.fill_(math.nan)
            try:
                _predict(model, image)
                silent.append(name)
            except ZooError as error:
                assert "image_3.png" in str(error) and "earlier checkpoint" in str(error)
            layer.weight.copy_(before)
    assert not silent
    assert len(_predict(model, image)) == 1


def test_integers_and_half_precision_are_no_reason_to_complain():
    whole = {"image": torch.full((3, 9, 9), 255, dtype=torch.uint8)}
    half = {"image": torch.full((3, 300, 300), 255, dtype=torch.float16)}  # its sum is too large
    with tell_non_finite([whole, half], []):
        pass


def test_an_image_is_named_as_well_as_it_can_be():
    bad = torch.full((3, 2, 2), math.nan)
    for record, name in (({"image_id": 7}, "image 7"), ({}, "image ?")):
        with (
            pytest.raises(ZooError, match=name.replace("?", r"\?")),
            tell_non_finite([{"image": bad, **record}], []),
        ):
            pass


def test_other_errors_pass_and_leave_no_hook_behind():
    part = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="mine"), tell_non_finite([], [nn.ModuleList([part])]):
        part(torch.ones(1, 2))
        raise ValueError("mine")
    assert not part._forward_hooks
