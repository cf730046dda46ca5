"""Functions that compute in fp64, on a device without it: nothing in fp64 there, results there.

No such device is needed: fake tensors have only shapes, types and devices. They stand for a GPU,
which is said to have no fp64, because only builds for Apple know "mps" well enough.
"""

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import instancezoo
from instancezoo.layers import double
from instancezoo.layers.borders import Borders
from instancezoo.layers.double import find_double_device
from instancezoo.layers.extension import IS_BUILT
from instancezoo.layers.mass_centers import find_mass_centers
from instancezoo.layers.nms import nms_per_class
from instancezoo.layers.polar import cast_ray_targets
from instancezoo.solo.targets import reduce_as_opencv

DEVICE = torch.device("cuda")


class NoDouble(TorchDispatchMode):
    """Refuses fp64 on the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            is_double = isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64
            assert not (is_double and leaf.device.type == DEVICE.type), function
        return result


@pytest.fixture
def no_double(monkeypatch):
    monkeypatch.setattr(double, "WITHOUT_DOUBLE", (DEVICE.type,))
    environment = ShapeEnv(allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(shape_env=environment), NoDouble():
        yield


def make_masks():
    return torch.zeros(3, 40, 33, dtype=torch.bool, device=DEVICE)


def test_the_check_itself(no_double):
    with pytest.raises(AssertionError):
        torch.zeros(2, device=DEVICE).double()


@pytest.mark.parametrize(
    "compute",
    [
        lambda: nms_per_class(
            torch.zeros(5, 4, device=DEVICE),
            torch.zeros(5, device=DEVICE),
            torch.zeros(5, dtype=torch.long, device=DEVICE),
            0.5,
        ),
        lambda: find_mass_centers(make_masks())[0],
        lambda: reduce_as_opencv(make_masks(), 4),
    ],
    ids=["nms_per_class", "find_mass_centers", "reduce_as_opencv"],
)
def test_function(no_double, compute):
    assert compute().device.type == DEVICE.type


@pytest.mark.skipif(not IS_BUILT, reason="the plain version reads values, which fake tensors lack")
def test_ray_targets(no_double):
    borders = Borders(
        torch.zeros(9, 2, dtype=torch.int32, device=DEVICE),
        torch.zeros(2, dtype=torch.long, device=DEVICE),
        torch.zeros(1, 2, device=DEVICE),
    )
    points, owners = torch.zeros(2, 5, 2, dtype=torch.long, device=DEVICE)
    assert cast_ray_targets(points, owners[:, 0], borders).device.type == DEVICE.type


def test_other_devices_keep_it():
    assert find_double_device(torch.device("mps")).type == "cpu"
    for name in ("cpu", "cuda", "meta"):
        assert find_double_device(torch.device(name)).type == name


def test_whatever_computes_in_double_asks_for_the_device():
    folder = Path(instancezoo.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}
    using = {p for p, text in sources.items() if re.search(r"\.double\(\)|torch\.float64", text)}
    using = {path for path in using if path.parent.name != "checkpoint"}  # it only names the type
    assert len(using) > 5
    # `points.py` passes fp64 on, `contour_tiles.py` computes where `ImageMasks` puts the scores.
    exempt = {folder / "layers" / name for name in ("points.py", "contour_tiles.py")}
    assert [p for p in using - exempt if "find_double_device" not in sources[p]] == []
