"""COCO's run-length strings, valid and not."""

import numpy as np
import pycocotools.mask as mask_util
from hypothesis import given, settings
from hypothesis import strategies as st

from instancezoo.data.coco_masks import decode_runs
from instancezoo.data.coco_values import BadEntry


@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 90), st.floats(0, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_runs_are_those_of_the_mask(seed: int, height: int, width: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density

    runs = decode_runs(mask_util.encode(np.asfortranarray(mask, np.uint8))["counts"].decode())

    values = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(values, mask.reshape(-1, order="F"))


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_string_gives_runs_or_is_refused(counts: str) -> None:
    try:
        runs = decode_runs(counts)
    except BadEntry:
        return
    assert len(runs) > 0
