"""`PrototypeMasks` against the published order of steps, written out for whole maps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools.mask import encode

from instancezoo.benchmark.peak_memory import PeakMemory
from instancezoo.layers.score_windows import ROUNDING
from instancezoo.modeling.masks import PrototypeMasks

pytestmark = pytest.mark.usefixtures("op_version")

NUM_PROTOTYPES = 8
SIZES = [
    *((96, 128), (45, 61), (23, 37), (200, 90)),  # enlarged, and made smaller
    *((1, 1), (2, 3), (8, 5), (1, 300), (7, 150), (150, 4)),
    (34, 46),  # the grid's own
]


def _make_prototypes(height=34, width=46, seed=0):
    """Smooth maps, 0 in some places as after ReLU."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, NUM_PROTOTYPES, 6, 7, generator=generator)
    return F.interpolate(noise, size=(height, width), mode="bicubic")[0].relu()


def _make_boxes(count, height=34, width=46, seed=0):
    """Boxes of many sizes, some partly or wholly outside, some with exchanged corners."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(0.2), np.log(40), (count, 2)))
    centres = rng.uniform(-0.2, 1.2, (count, 2)) * [width, height]
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    turned = rng.random(count) < 0.2
    boxes[turned] = boxes[turned][:, [2, 1, 0, 3]]
    boxes[rng.random(count) < 0.2] //= 1  # on whole cells
    return torch.from_numpy(boxes).float()


def _make_masks(count, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(count, NUM_PROTOTYPES, generator=generator).tanh() * 2
    boxes, prototypes = _make_boxes(count, seed=seed), _make_prototypes(seed=seed)
    return PrototypeMasks(coefficients, boxes, prototypes, **kwargs)


def _keep(one, other, pad, length):
    """Which cells of an axis a box keeps: (M, length) bool."""
    first = (torch.minimum(one, other) - pad).clamp(min=0)
    stop = (torch.maximum(one, other) + pad).clamp(max=length)
    cells = torch.arange(length)
    return (cells >= first[:, None]) & (cells < stop[:, None])


def _crop_by_definition(masks):
    """(M, h, w): whole maps of all masks, sigmoid, zeros outside the boxes."""
    grid = torch.einsum("dhw,md->mhw", masks.prototypes.double(), masks.coefficients.double())
    x1, y1, x2, y2 = masks.boxes.unbind(1)
    height, width = grid.shape[1:]
    columns, rows = _keep(x1, x2, masks.pad, width), _keep(y1, y2, masks.pad, height)
    return grid.sigmoid().float() * (rows[:, :, None] & columns[:, None, :])


def _resize(maps, size):
    """One map at a time."""
    resized = [F.interpolate(one[None, None], size, mode="bilinear")[0, 0] for one in maps]
    return torch.stack(resized) if resized else maps.new_zeros(0, *size)


def _assert_rle(codes, masks):
    assert len(codes) == len(masks)
    for code, mask in zip(codes, masks.numpy(), strict=True):
        expected = encode(np.asfortranarray(mask.astype(np.uint8)))
        assert code["size"] == list(mask.shape) and code["counts"] == expected["counts"].decode()


def _assert_published(masks, size):
    """Both outputs equal the definition, except where the last bits of a sum decide."""
    found = masks.bitmasks(*size)
    assert found.dtype == torch.bool and found.shape == (len(masks), *size)
    scores = _resize(_crop_by_definition(masks), size)
    clear = ((scores - masks.threshold).abs() > 2e-6) | (scores == 0)
    assert torch.equal(found & clear, (scores > masks.threshold) & clear)
    assert clear.float().mean() > 0.999 or not len(masks)
    # Given the scores of the grid, not even those may differ.
    own = _resize(masks.cropped_scores()[:, 0], size)
    if sum(size) > 128:  # torch resizes to less by other instructions, see the class
        assert torch.equal(found, own > masks.threshold)
    else:
        clear = (own - masks.threshold).abs() > ROUNDING
        assert torch.equal(found & clear, (own > masks.threshold) & clear)
    _assert_rle(masks.rle(*size), found)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_equal_to_the_published_order(size):
    found = _assert_published(_make_masks(120), size)
    if min(size) > 20:
        assert 0.3 < found.any(dim=(1, 2)).float().mean() < 0.95


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("pad", [0.0, 1.0, 2.5])
def test_other_thresholds_and_pads(threshold, pad):
    _assert_published(_make_masks(60, seed=1, threshold=threshold, pad=pad), (96, 128))


@pytest.mark.parametrize("seed", range(12))
def test_random_grids_and_sizes(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 60, 2))
    size = tuple(int(side) for side in np.exp(rng.uniform(0, np.log(250), 2)))
    noise = torch.from_numpy(rng.normal(0, 2, (3, height, width))).float()
    coefficients = torch.from_numpy(rng.normal(0, 1, (30, 3))).float()
    boxes = _make_boxes(30, height, width, seed)
    _assert_published(PrototypeMasks(coefficients, boxes, noise), size)


def test_masks_that_reach_beyond_their_box_end_where_interpolation_does():
    prototypes = torch.full((1, 20, 20), 50.0)  # scores of 1
    masks = PrototypeMasks(torch.ones(1, 1), torch.tensor([[5.5, 5.5, 9.5, 12.5]]), prototypes)
    kept = masks.cropped_scores()[0, 0]
    assert kept[5:14, 5:11].eq(1).all() and kept.sum() == 9 * 6  # 4.5 <= p < 10.5 in x
    assert masks.bitmasks(200, 200)[0].nonzero().aminmax(dim=0)[0].tolist() == [50, 50]
    assert masks.bitmasks(200, 200)[0].nonzero().aminmax(dim=0)[1].tolist() == [139, 109]


def test_boxes_that_hold_nothing_and_everything():
    boxes = [
        *([-9, -9, -3, -3], [60, 40, 70, 50], [5, -20, 9, -2]),  # outside
        *([5, 5, 5, 5], [5.5, 5.5, 5.5, 9]),  # without area: the pad is left
        *([0, 0, 46, 34], [-1e9, -1e9, 1e9, 1e9], [46, 34, 0, 0]),  # all
        *([torch.nan, 0, 9, 9], [0, 0, torch.inf, 9], [-torch.inf, 0, torch.inf, 9]),
    ]
    prototypes = torch.full((1, 34, 46), 50.0)
    masks = PrototypeMasks(torch.ones(len(boxes), 1), torch.tensor(boxes), prototypes)
    areas = masks.cropped_scores().sum(dim=(1, 2, 3)).tolist()
    assert areas == [0, 0, 0, 4, 2 * 5, *[34 * 46] * 3, 0, 0, 0]
    _assert_published(masks[:8], (90, 130))
    found = masks.bitmasks(90, 130)
    assert found[5:8].all() and not found[8:].any() and not found[:3].any()
    _assert_rle(masks.rle(90, 130), found)


def test_plateaus_on_the_threshold_are_background():
    # After ReLU all prototypes may be 0: the score is 0.5, and the comparison is strict.
    prototypes = _make_prototypes()
    prototypes[:, :20, :30] = 0
    coefficients = torch.randn(30, NUM_PROTOTYPES, generator=torch.Generator().manual_seed(2))
    masks = PrototypeMasks(coefficients, _make_boxes(30), prototypes)
    own = _resize(masks.cropped_scores()[:, 0], (300, 400))
    assert (own == 0.5).sum() > 1000
    found = masks.bitmasks(300, 400)
    assert torch.equal(found, own > 0.5)
    _assert_rle(masks.rle(300, 400), found)


def test_scores_around_the_threshold_are_decided_by_torchs_own_resize():
    # Whole slopes of the scores lie within a few rounding errors of the threshold.
    generator = torch.Generator().manual_seed(3)
    prototypes = torch.randn(2, 34, 46, generator=generator) * 2e-7
    masks = PrototypeMasks(torch.ones(20, 2), _make_boxes(20), prototypes)
    own = _resize(masks.cropped_scores()[:, 0], (96, 128))
    found = masks.bitmasks(96, 128)
    assert found.any() and ((own - 0.5).abs() < ROUNDING).sum() > 1000
    assert torch.equal(found, own > 0.5)
    _assert_rle(masks.rle(96, 128), found)


def test_what_is_not_a_number_is_no_foreground():
    masks = _make_masks(20)
    masks.prototypes[2, 10:14, 9:15] = torch.nan
    masks.coefficients[3] = torch.nan
    own = _resize(masks.cropped_scores()[:, 0], (96, 128))
    found = masks.bitmasks(96, 128)
    assert own.isnan().any() and torch.equal(found, own > 0.5) and not found[3].any()
    _assert_rle(masks.rle(96, 128), found)


def test_memory_layout_and_precision_of_the_input_do_not_matter():
    masks = _make_masks(40).to(torch.float16)
    assert masks.prototypes.dtype == torch.float16
    expected = masks.to(torch.float32).rle(96, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masks.rle(96, 128) == expected
    channels_last = masks.prototypes.float().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    turned = masks.coefficients.float().T.contiguous().T, masks.boxes.float().T.contiguous().T
    assert PrototypeMasks(*turned, channels_last.requires_grad_()).rle(96, 128) == expected


def test_small_budget_changes_nothing():
    masks = _make_masks(40)
    less = PrototypeMasks(masks.coefficients, masks.boxes, masks.prototypes, budget=1)
    assert less.rle(96, 128) == masks.rle(96, 128)
    assert torch.equal(less.bitmasks(96, 128), masks.bitmasks(96, 128))


def test_index_cat_and_none():
    masks = _make_masks(30)
    full = masks.bitmasks(60, 90)
    assert torch.equal(masks[torch.tensor([4, 1])].bitmasks(60, 90), full[[4, 1]])
    assert torch.equal(masks[-1].bitmasks(60, 90), full[-1:])
    assert masks[3].prototypes is masks.prototypes
    assert torch.equal(PrototypeMasks.cat([masks[:2], masks[2:]]).bitmasks(60, 90), full)
    assert len(list(masks)) == 30  # a loop ends
    none = masks[:0]
    assert none.bitmasks(40, 50).shape == (0, 40, 50) and none.rle(40, 50) == []
    assert none.cropped_scores().shape == (0, 1, 34, 46)
    others = PrototypeMasks(masks.coefficients, masks.boxes, masks.prototypes + 1)
    with pytest.raises(ValueError, match="different prototypes"):
        PrototypeMasks.cat([masks, others])


def test_a_mask_does_not_depend_on_the_others():
    masks = _make_masks(30)
    assert [masks[i].rle(96, 128)[0] for i in range(30)] == masks.rle(96, 128)


def test_rle_holds_neither_full_masks_nor_whole_maps():
    prototypes = _make_prototypes(138, 138)
    coefficients = torch.randn(200, NUM_PROTOTYPES, generator=torch.Generator().manual_seed(0))
    boxes = _make_boxes(200, 138, 138)
    masks = PrototypeMasks(coefficients, boxes, prototypes)
    with PeakMemory() as memory:
        masks.rle(1000, 1000)
    assert memory.peak < 200 * 1000 * 1000 / 2  # bytes; full masks of one byte a pixel are twice


@pytest.mark.parametrize(
    "shapes",
    [((3, 8), (3, 4), (8, 9)), ((3, 7), (3, 4), (8, 9, 9)), ((3, 8), (2, 4), (8, 9, 9))],
)
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"\(M, D\).*\(M, 4\).*\(D, h, w\)"):
        PrototypeMasks(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("numbers", [{"threshold": -0.1}, {"threshold": 1.0}, {"pad": -1.0}])
def test_other_thresholds_and_pads_are_refused(numbers):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\)"):
        _make_masks(2, **numbers)


def test_an_image_has_pixels():
    with pytest.raises(ValueError, match="0 x 5"):
        _make_masks(2).rle(0, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_on_a_gpu():
    masks = _make_masks(60).to("cuda")
    found = masks.bitmasks(96, 128)
    own = F.interpolate(masks.cropped_scores(), (96, 128), mode="bilinear")[:, 0]
    assert found.is_cuda and torch.equal(found, own > 0.5)
    _assert_rle(masks.rle(96, 128), found.cpu())
