"""The rename-rule engine on small tables."""

import re
from collections.abc import Callable

import pytest
import torch

from instancezoo.checkpoint import CheckpointError, Layout, convert_state_dict
from instancezoo.checkpoint import convert as convert_module
from instancezoo.checkpoint.convert import list_layouts
from instancezoo.checkpoint.rename import fill_template, match_name
from instancezoo.method import Method


def make_layout(**changes) -> Layout:
    fields = {
        "name": "zebra net",
        "method": "Zebra",
        "config": "zebra/zebra_R_50",
        "licence": "MIT",
        "must": ("zebra.{i}.weight",),
        "rows": (("zebra.{i}.*", "head.{i+1}.*"), ("out.*", "predictor.*", torch.neg)),
        "unused": ("**.counter",),
    }
    return Layout(**(fields | changes))


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """The only layouts that are recognised; a test adds its own."""
    known: list[Layout] = []
    monkeypatch.setattr(convert_module, "list_layouts", lambda: known)
    return known


STATE = {
    "zebra.0.weight": torch.ones(2, 3),
    "zebra.1.weight": torch.zeros(2, 3),
    "out.bias": torch.ones(2),
    "zebra.0.counter": torch.tensor(3),
}


@pytest.mark.parametrize(
    ("pattern", "template", "name", "wanted"),
    [
        ("a.b", "c", "a.b", "c"),
        ("a.b", "c", "axb", None),  # a dot is a dot
        ("a.b", "c", "a.b.c", None),  # the whole name
        ("a.*", "c.*", "a.weight", "c.weight"),
        ("a.*", "c.*", "a.b.weight", None),
        ("a.**", "c.**", "a.b.weight", "c.b.weight"),
        ("a*.{i}.**", "x*.{i-1}.**", "ab.3.c.d", "xb.2.c.d"),
        ("layer{s}.{b}.w", "res{s+1}.{b}.w", "layer4.11.w", "res5.11.w"),
        ("layer{s}.w", "res{s+1}.w", "layerx.w", None),
        ("a{i}.b{i}", "c{i}", "a3.b3", "c3"),  # the same index twice
        ("a{i}.b{i}", "c{i}", "a3.b4", None),
        ("a.[mask]_{i}", "m{i}", "a.[mask]_1", "m1"),
    ],
)
def test_patterns(pattern: str, template: str, name: str, wanted: str | None) -> None:
    values = match_name(pattern, name)
    assert (None if values is None else fill_template(template, values)) == wanted


@pytest.mark.parametrize("template", ["{j}", "a.*.*", "**"])
def test_a_right_side_cannot_invent(template: str) -> None:
    pattern = "a.{i}" if template != "a.*.*" else "a.*"
    values = match_name(pattern, "a.1")
    assert values is not None
    with pytest.raises(ValueError, match=re.escape(f"'{template}'")):
        fill_template(template, values)


def test_convert(layouts: list[Layout]) -> None:
    layout = make_layout()
    layouts.append(layout)
    converted = convert_state_dict(STATE)
    assert converted.layout is layout
    assert converted.used["zebra.1.weight"] == "head.2.weight"
    assert converted.unused == ["zebra.0.counter"] and converted.unknown == []
    assert converted.state.keys() == {"head.1.weight", "head.2.weight", "predictor.bias"}
    assert torch.equal(converted.state["predictor.bias"], -STATE["out.bias"])


def test_a_name_without_a_row_is_an_error(layouts: list[Layout]) -> None:
    layouts.append(make_layout())
    state = {**STATE, "extra.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"'zebra net'.*extra\.weight"):
        convert_state_dict(state)
    converted = convert_state_dict(state, allow_unknown=True)
    assert converted.unknown == ["extra.weight"] and len(converted.state) == 3


def test_two_names_on_one_are_an_error(layouts: list[Layout]) -> None:
    layouts.append(make_layout(rows=(("zebra.{i}.*", "head.*"), ("out.*", "out.*"))))
    with pytest.raises(CheckpointError, match=r"'zebra\.0\.weight'.*'zebra\.1\.weight'"):
        convert_state_dict(STATE)


def test_signature(layouts: list[Layout]) -> None:
    layouts.append(make_layout())
    layouts.append(make_layout(name="wide", shapes={"zebra.{i}.weight": (4, None)}))
    layouts.append(make_layout(name="deep", must=("zebra.5.weight",)))
    assert convert_state_dict(STATE).layout.name == "zebra net"
    with pytest.raises(CheckpointError, match=r"'zebra net'.*'wide'"):
        convert_state_dict({"zebra.0.weight": torch.ones(4, 9)})


def test_no_layout_fits_shows_the_nearest(layouts: list[Layout]) -> None:
    layouts.append(make_layout(must_not=("lion.*",)))
    layouts.append(make_layout(name="other", must=("other",), rows=(("other", "o"),)))
    with pytest.raises(CheckpointError) as error:
        convert_state_dict({**STATE, "lion.weight": torch.ones(1)})
    assert re.search(r"'zebra net'.*4 of 5.*'lion\.weight'", str(error.value))
    with pytest.raises(CheckpointError, match=r"x\.y"):
        convert_state_dict({"x.y": torch.ones(1)})


def test_two_layouts_of_one_name(add_method: Callable[[Method], None]) -> None:
    add_method(Method("Zebra", ("Zebra",), layouts=(make_layout(), make_layout(config="other"))))
    with pytest.raises(KeyError, match="zebra net"):
        list_layouts()


def test_a_wrong_row_is_found_when_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"'b\.\{j\}'"):
        make_layout(rows=(("a.{i}", "b.{j}"),))


def test_tensors_that_a_file_lacks_are_made_from_others(layouts: list[Layout]) -> None:
    layouts.append(make_layout(derived=(("zebra.{i}.weight", "head.{i+1}.mean", torch.sum),)))
    converted = convert_state_dict(STATE)
    assert converted.state["head.1.mean"] == 6 and converted.state["head.2.mean"] == 0
    assert torch.equal(converted.state["head.1.weight"], STATE["zebra.0.weight"])
    assert len(converted.used) + len(converted.unused) == len(STATE)


def test_a_wrong_row_of_a_made_tensor_fails_at_import() -> None:
    with pytest.raises(ValueError, match="which its pattern lacks"):
        make_layout(derived=(("out.weight", "predictor.{i}.mean", torch.sum),))
