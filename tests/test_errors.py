"""What error messages are made of."""

import pytest

from instancezoo.errors import ZooError, first_line, suggest

NAMES = ["resnet18", "resnet34", "resnet50", "vgg16"]


@pytest.mark.parametrize(
    "wanted,options,expected",
    [
        ("resnt50", {}, ["resnet50"]),
        ("resnet", {"most": 3}, ["resnet50", "resnet34", "resnet18"]),
        ("alexnet", {"cutoff": 0.9}, []),
        ("zzz", {"cutoff": 0}, ["vgg16"]),
    ],
)
def test_nearest_names_are_suggested(wanted, options, expected):
    hint = suggest(wanted, iter(NAMES), **options)
    assert [name for name in NAMES if f"'{name}'" in hint] == sorted(expected)
    assert hint.startswith("; ") == bool(expected) and bool(hint) == bool(expected)
    assert suggest(wanted, []) == ""


@pytest.mark.parametrize(
    "error,expected",
    [
        (ValueError("\n bad\nthing "), "bad"),
        (MemoryError(), "MemoryError"),
        (ZooError("file 'x'\nand more"), "file 'x'"),
        (KeyError("x"), "'x'"),
    ],
)
def test_an_error_is_told_in_one_line(error, expected):
    assert first_line(error) == expected
