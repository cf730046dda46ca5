"""Every method against arrays that its official code computed, stage by stage from the input."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from parity.fcos import FCOSParity
from parity.fixtures import Fixture, list_fixtures, read_fixture
from parity.grid import GridParity
from parity.htc import HTCParity
from parity.metric import MetricParity
from parity.panet import PANetParity
from parity.pointrend import PointRendParity
from parity.polarmask import PolarMaskParity
from parity.semiconv import SemiConvParity
from parity.ssap import SSAPParity
from parity.two_stage import TwoStageParity
from parity.unet_boundary import BoundaryUNetParity
from parity.watershed import WatershedParity
from parity.yolact import YOLACTParity

# method of a fixture -> what checks it
CHECKS: dict[str, Any] = {
    "solo": GridParity,
    "decoupled_solo": GridParity,
    "solov2": GridParity,
    "solov2_adet": GridParity,
    "fcos": FCOSParity,
    "polarmask": PolarMaskParity,
    "pointrend": PointRendParity,
    "htc": HTCParity,
    "cascade_mask_rcnn": HTCParity,
    "mask_rcnn": TwoStageParity,
    "YOLACT (ResNet-50)": YOLACTParity,
    "YOLACT++ (ResNet-50, DCNv2)": YOLACTParity,
    "panet": PANetParity,
    "semiconv": SemiConvParity,
    "ssap": SSAPParity,
    "deep_watershed": WatershedParity,
    "metric_learning": MetricParity,
    "unet_boundary": BoundaryUNetParity,
}


@lru_cache(maxsize=1)  # stages of one fixture follow each other
def _prepare(name: str) -> Any:
    fixture = read_fixture(name)
    return CHECKS[fixture.method](fixture)


def _list_stages(fixture: Fixture) -> list[str]:
    """The stages of a fixture; for a method without checks one that fails."""
    checks = CHECKS.get(fixture.method)
    if checks is None:
        return ["is_known"]
    # Fixtures of the two-stage family differ in the arrays that they hold.
    return checks.list_stages(fixture) if hasattr(checks, "list_stages") else list(checks.stages)


FIXTURES = [read_fixture(name) for name in list_fixtures()]


@pytest.mark.parametrize(
    "name,stage", [(fixture.name, stage) for fixture in FIXTURES for stage in _list_stages(fixture)]
)
def test_fixture(name: str, stage: str) -> None:
    method = read_fixture(name).method
    assert method in CHECKS, f"tests/golden/{name} is of '{method}', for which CHECKS has no class"
    getattr(_prepare(name), f"check_{stage}")()


def test_no_stage_of_htc_is_left_out() -> None:
    assert _list_stages(read_fixture("htc")) == list(HTCParity.needs)


def test_a_fixture_of_an_unknown_method_is_one_failing_test() -> None:
    spec = {**read_fixture("htc").spec, "method": "Zebra R-CNN"}
    assert _list_stages(Fixture("zebra", spec)) == ["is_known"]


# What a relative of HTC shares with its fixture: backbone, region proposals, names of the heads.
_SHARED = re.compile(r"net_input|p\d|rpn_.*|proposal_.*|loss\.loss_rpn.*|gt_(boxes|classes|masks)")
_STAGES = ["checkpoint", "maps", "region_proposal_maps", "proposals", "region_proposal_losses"]


def _make_relative(method: str, rename: Callable[[str], str | None], threshold: float) -> Fixture:
    """The fixture of HTC without what a relative lacks."""
    htc = read_fixture("htc")
    names = {name: rename(name) for name in htc.spec["shapes"]}
    shapes = {new: htc.spec["shapes"][old] for old, new in names.items() if new is not None}
    config = {"official_test_score_thr": threshold}
    relative = Fixture(method, {**htc.spec, "method": method, "shapes": shapes, "config": config})
    relative.__dict__["arrays"] = {n: x for n, x in htc.arrays.items() if _SHARED.fullmatch(n)}
    return relative


def _to_cascade(name: str) -> str | None:
    return None if "conv_res" in name or "semantic" in name else name


def _to_single(name: str) -> str | None:
    if _to_cascade(name) is None or re.search(r"_head\.[12]\.", name):
        return None
    return name.replace("_head.0.", "_head.")


@pytest.mark.parametrize(
    "method,rename", [("cascade_mask_rcnn", _to_cascade), ("mask_rcnn", _to_single)]
)
def test_relatives_of_htc_are_checked(method: str, rename: Callable[[str], str | None]) -> None:
    relative = _make_relative(method, rename, threshold=0.05)
    if method == "mask_rcnn":  # its deltas depend on the class
        for name in ("weight", "bias"):
            shape = relative.spec["shapes"][f"roi_head.bbox_head.fc_reg.{name}"]
            shape[0] = 320
    assert _list_stages(relative) == _STAGES
    parity = CHECKS[method](relative)
    for stage in _STAGES:
        if (method, stage) != ("mask_rcnn", "region_proposal_losses"):  # L1, and HTC's is smooth
            getattr(parity, f"check_{stage}")()
