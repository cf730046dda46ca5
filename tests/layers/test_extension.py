"""What happens with and without the compiled operators."""

import importlib
import importlib.util

import pytest
import torch

from instancezoo.layers import extension


def test_without_the_extension_there_is_no_operator(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not extension._load_extension()
    monkeypatch.setattr(extension, "IS_BUILT", False)
    assert extension.find_compiled("find_borders", torch.device("cpu")) is None

    def fake(masks):
        return masks

    assert extension.register_fake("no_such_operator")(fake) is fake


def test_extension_of_another_pytorch_is_left_out_with_a_warning(monkeypatch):
    def fail(name):
        raise ImportError("undefined symbol: _ZN2at")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.warns(RuntimeWarning, match="undefined symbol"):
        assert not extension._load_extension()


@pytest.mark.skipif(not extension.IS_BUILT, reason="instancezoo._C was not built")
def test_operators_are_found_where_they_have_a_kernel():
    assert extension.find_compiled("cast_ray_targets", torch.device("cpu")) is not None
    assert extension.find_compiled("cast_ray_targets", torch.device("meta")) is None
    assert extension.find_compiled("find_borders", torch.device("cuda")) is None


@pytest.mark.skipif(not extension.IS_BUILT, reason="instancezoo._C was not built")
def test_an_operator_that_an_older_build_lacks_is_told_and_replaced():
    def fake(masks):
        return masks

    with pytest.warns(RuntimeWarning, match="no no_such_operator.*Install the package again"):
        assert extension.register_fake("no_such_operator")(fake) is fake
    assert extension.find_compiled("no_such_operator", torch.device("cpu")) is None
