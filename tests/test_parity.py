"""Every method against arrays that its official code computed, stage by stage from the input."""

from functools import lru_cache
from typing import Any

import pytest
from parity.fcos import FCOSParity
from parity.fixtures import list_fixtures, read_fixture
from parity.grid import GridParity
from parity.htc import HTCParity
from parity.panet import PANetParity
from parity.pointrend import PointRendParity
from parity.polarmask import PolarMaskParity
from parity.semiconv import SemiConvParity
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
    "YOLACT (ResNet-50)": YOLACTParity,
    "YOLACT++ (ResNet-50, DCNv2)": YOLACTParity,
    "panet": PANetParity,
    "semiconv": SemiConvParity,
}


@lru_cache(maxsize=1)  # stages of one fixture follow each other
def _prepare(name: str) -> Any:
    fixture = read_fixture(name)
    return CHECKS[fixture.method](fixture)


def _list_stages() -> list[tuple[str, str]]:
    names = list_fixtures()
    return [(name, stage) for name in names for stage in CHECKS[read_fixture(name).method].stages]


@pytest.mark.parametrize("name,stage", _list_stages())
def test_fixture(name: str, stage: str) -> None:
    getattr(_prepare(name), f"check_{stage}")()
