"""Targets, losses and grouping of the boundary U-Net on cases that are made by hand."""

import sys

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, ImageList, Instances
from detectron2.utils.events import EventStorage

from instancezoo.errors import ConfigError
from instancezoo.modeling.object_maps import IGNORED, ObjectMaps
from instancezoo.optional import MissingPackageError
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input
from instancezoo.unet_boundary.grouping import (
    GroupingSettings,
    find_seeds,
    group_pixels,
    quantise,
)
from instancezoo.unet_boundary.head import BoundaryMaps
from instancezoo.unet_boundary.losses import VARIANTS, average, boundary_losses, measure_dice
from instancezoo.unet_boundary.targets import (
    BACKGROUND,
    BORDER,
    INTERIOR,
    classify_pixels,
    find_borders,
    make_targets,
    weigh_pixels,
)
from instancezoo.unet_boundary.watershed import drop_small, flood, split_parts

TINY = "unet_boundary/unet_boundary_tiny"


def _build(*overrides):
    return build_seeded_model(get_tiny_config(TINY, list(overrides))).eval()


def _draw_boxes(size, boxes):
    ids = torch.zeros(1, *size, dtype=torch.long)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        ids[0, y0:y1, x0:x1] = number
    return ids


def _borders_by_loops(ids):
    """Sections 1 to 3 of the recipe, pixel by pixel."""
    height, width = ids.shape
    sizes = np.bincount(ids.ravel(), minlength=ids.max() + 1)
    gap = 6 if len(sizes) > 1 and sizes[1:].max() > 4000 else 3

    def window(values, y, x, radius):
        return values[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]

    def has_two(y, x, radius):
        found = np.unique(window(ids, y, x, radius))
        return len(found[found > 0]) >= 2

    every = [(y, x) for y in range(height) for x in range(width)]
    fat = np.array([window(ids > 0, y, x, 4).any() for y, x in every]).reshape(ids.shape)
    labels = flood(np.zeros(ids.shape, np.uint8), ids, fat, draw_line=True)
    line = fat & (labels == 0)
    for y, x in every:
        line[y, x] |= ids[y, x] > 0 and has_two(y, x, 1)
    result = np.zeros(ids.shape, bool)
    for y, x in every:
        if window(line, y, x, 3).any():
            size = sizes[ids[y, x]]
            inner = 1 if size < 300 else 2 if size < 2000 else 3
            result[y, x] = has_two(y, x, inner if ids[y, x] else gap)
    return result


@pytest.mark.parametrize(
    "boxes",
    [
        [(2, 2, 12, 12), (12, 2, 20, 14), (23, 3, 30, 20), (2, 15, 5, 18)],
        [(0, 0, 70, 58), (72, 0, 90, 30), (76, 34, 90, 60)],  # over 4000 pixels: gaps of 6
        [(0, 0, 45, 45), (45, 0, 62, 30), (64, 0, 70, 6)],  # radii 3, 2 and 1
        [(3, 3, 4, 4), (4, 3, 5, 4)],
        [],
    ],
)
def test_borders_equal_the_recipe_by_loops(boxes):
    ids = _draw_boxes((60, 92), boxes)
    assert np.array_equal(find_borders(ids)[0].numpy(), _borders_by_loops(ids[0].numpy()))


def test_images_of_a_batch_do_not_mix():
    """A large object widens the gaps of its own image alone."""
    small = _draw_boxes((70, 70), [(0, 0, 8, 8), (13, 0, 20, 8)])
    large = _draw_boxes((70, 70), [(0, 0, 65, 65)])
    together = classify_pixels(torch.cat([small, large]))
    assert torch.equal(together[:1], classify_pixels(small))
    assert torch.equal(together[1:], classify_pixels(large))


def test_a_long_contact_has_a_border_everywhere():
    ids = _draw_boxes((40, 40), [(5, 5, 20, 35), (20, 5, 35, 35)])
    with_contacts = classify_pixels(ids)[0, 5:35, 19:21]
    without = classify_pixels(ids, contacts=False)[0, 5:35, 19:21]
    assert (with_contacts == BORDER).all()
    assert (without[10:20] == INTERIOR).all()


def test_one_object_or_none_has_no_border():
    one = classify_pixels(_draw_boxes((20, 20), [(3, 3, 12, 9)]))
    assert (one == INTERIOR).sum() == 54 and (one == BACKGROUND).sum() == 346
    assert (classify_pixels(_draw_boxes((5, 5), [])) == BACKGROUND).all()


def test_weights_of_the_gap_between_two_objects():
    ids = _draw_boxes((30, 40), [(5, 5, 15, 25), (19, 5, 30, 25)])
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[..., 36:] = False
    weights = weigh_pixels(ids, valid, weight=10, sigma=5)[0]
    share = (200 + 220) / (30 * 36)
    assert weights[10, 7] == pytest.approx(0.5 / share)
    # At (17, 10) the objects are 3 and 2 pixels away.
    expected = 0.5 / (1 - share) + 10 * np.exp(-(5**2) / 50)
    assert weights[10, 17] == pytest.approx(expected, rel=1e-5)
    assert (weights[:, 36:] == 0).all()
    nothing = weigh_pixels(torch.zeros_like(ids), valid, weight=10, sigma=5)
    assert torch.isfinite(nothing).all() and (nothing[0, :, :36] == 0.5).all()


def _make_targets(boxes=((2, 2, 12, 20), (12, 2, 24, 20)), weight=None):
    ids = _draw_boxes((24, 32), boxes)
    classes = torch.where(ids > 0, 0, 1)
    classes[..., 28:] = IGNORED
    objects = ObjectMaps(ids, classes, (len(boxes),))
    return make_targets(objects, contacts=True, weight=weight, sigma=5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("boxes", [((2, 2, 12, 20), (12, 2, 24, 20)), ()])
def test_losses_ignore_what_is_not_valid_and_fall_with_the_truth(variant, boxes):
    targets = _make_targets(boxes, weight=10 if variant == "weighted" else None)
    truth = targets.boundary[:, None] == torch.arange(3)[:, None, None]
    if variant == "sigmoid":
        truth = torch.stack([targets.ids > 0, targets.boundary == BORDER], dim=1)
    right = torch.where(truth, 12.0, -12.0)
    noise = right.clone()
    noise[..., 28:] = torch.randn_like(noise[..., 28:]) * 9
    sums = []
    for logits in (right, noise, torch.zeros_like(right), -right):
        losses = boundary_losses(logits, targets, VARIANTS[variant])
        assert list(losses) == ["loss_pixels", "loss_interior", "loss_border"]
        sums.append(float(sum(losses.values())))
    assert sums[0] == pytest.approx(sums[1]) and sums[0] < 0.01 < sums[2] < sums[3]


def test_dice_is_over_the_batch():
    probs = torch.zeros(2, 1, 4, 4)
    probs[0, 0, :2] = 1
    truth = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    truth[:, :, 0] = True
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    assert float(measure_dice(probs, truth, valid, 1.0)) == pytest.approx((2 * 4 + 1) / (8 + 8 + 1))
    valid[1] = False
    assert float(measure_dice(probs, truth, valid, 1.0)) == pytest.approx((2 * 4 + 1) / (8 + 4 + 1))


def test_an_average_of_nothing_is_zero():
    values = torch.full((1, 2, 2), torch.nan)
    assert average(values, torch.zeros(1, 2, 2, dtype=torch.bool)) == 0


def test_levels_are_rounded_down():
    probs = torch.tensor([0.0, 0.9999, 1.0, 1 / 255, 1.9 / 255])
    assert quantise(probs).tolist() == [0, 254, 255, 1, 1]


def test_seeds_exceed_the_threshold_and_have_enough_pixels():
    interior = torch.zeros(20, 20, dtype=torch.uint8)
    border = torch.zeros_like(interior)
    interior[0:3, 0:4] = 128  # 128 * 255 > 0.5 * 255^2
    interior[6:9, 0:4] = 127
    interior[12:15, 0:3] = 255  # 9 pixels
    interior[10:20, 10:20] = 255
    border[14, 10:20] = 200  # parts the last one
    interior[4, 12] = interior[5, 13] = 255  # 2 pixels
    seeds = find_seeds(interior, border, 0.5, 10)
    assert np.unique(seeds).tolist() == [0, 1, 2, 3]
    assert (seeds == 1).sum() == 12 and seeds[0, 0] == 1
    assert (seeds == 2).sum() == 40 and (seeds == 3).sum() == 50
    diagonal = find_seeds(interior, border, 0.5, 2)
    assert diagonal[4, 12] == diagonal[5, 13] > 0


def _make_touching(size=(40, 60), gap=2):
    """Levels of a perfect network for two rectangles that touch, and the whole objects."""
    interior, border, whole = (torch.zeros(size, dtype=torch.uint8) for _ in range(3))
    whole[8:32, 10:50] = 255
    interior[8:32, 10:50] = 250
    border[8:32, 30 - gap : 30 + gap] = 255
    interior[8:32, 30 - gap : 30 + gap] = 5
    return interior, border, whole


def test_objects_side_by_side_are_parted_and_grow_back():
    interior, border, whole = _make_touching()
    labels = group_pixels(interior, border, None, GroupingSettings())
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert np.bincount(labels.ravel())[1:].tolist() == [18 * 24, 18 * 24]
    grown = group_pixels(interior, border, whole, GroupingSettings())
    assert np.bincount(grown.ravel())[1:].tolist() == [20 * 24, 20 * 24]
    assert (grown[8:32, 10:30] == 1).all() and (grown[8:32, 30:50] == 2).all()


def test_a_line_parts_objects_that_meet():
    interior, border, _ = _make_touching()
    interior[8:32, 10:50] = 250  # only the seeds are apart
    labels = group_pixels(interior, border, None, GroupingSettings())
    assert (labels[8:32, 10:50] == 0).sum() == 24
    without = group_pixels(interior, border, None, GroupingSettings(draw_line=False))
    assert (without[8:32, 10:50] > 0).all()


def test_parts_are_numbered_by_label_and_place():
    labels = np.array([[2, 0, 1, 0, 2], [0, 2, 0, 0, 0], [1, 0, 0, 0, 2]])
    expected = np.array([[3, 0, 1, 0, 4], [0, 3, 0, 0, 0], [2, 0, 0, 0, 5]])
    assert np.array_equal(split_parts(labels), expected)
    assert np.array_equal(split_parts(np.zeros((2, 3), np.int64)), np.zeros((2, 3)))


def test_small_labels_are_dropped():
    labels = np.array([[1, 1, 2, 3, 3, 3]])
    assert drop_small(labels, 2).tolist() == [[1, 1, 0, 2, 2, 2]]
    assert drop_small(labels, 9).max() == 0 and drop_small(labels * 0, 1).max() == 0


def test_many_objects_are_found():
    size = (300, 300)
    interior = torch.zeros(size, dtype=torch.uint8)
    interior.view(60, 5, 60, 5)[:, :4, :, :4] = 255
    border = torch.zeros_like(interior)
    labels = group_pixels(interior, border, interior, GroupingSettings())
    assert labels.max() == 3600
    maps = BoundaryMaps(_to_logits(interior, border), None, None)
    for limit in (3600, 7):
        model = _build("MODEL.BOUNDARY.MAX_INSTANCES", limit, "MODEL.BOUNDARY.NUM_CLASSES", 1)
        images = ImageList(torch.zeros(1, 3, *size), [size])
        assert len(model.decode(maps, images)[0]) == limit


def _to_logits(interior, border):
    probs = torch.stack([interior, border], dim=0).float() / 256 + 1e-4
    return torch.cat([probs, 1.001 - probs.sum(dim=0, keepdim=True)]).log()[None]


def test_the_class_is_the_majority_and_the_score_the_interior():
    interior, border, _ = _make_touching()
    logits = _to_logits(interior, border)
    classes = torch.zeros(1, 4, 40, 60)
    classes[:, 2, :, :30] = 5
    classes[:, 1, :, 30:] = 5
    classes[:, 3, 8:16, 10:50] = 9  # a third of both
    model = _build()
    maps = BoundaryMaps(logits, None, classes)
    segments = model.group(maps, 0, (40, 60))
    found, scores = model.describe(maps, 0, segments)
    assert found.tolist() == [2, 1]
    expected = logits.softmax(dim=1)[0, 0]
    labels = segments.draw_labels()
    means = [float(expected[labels == i].mean()) for i in (1, 2)]
    assert scores.tolist() == pytest.approx(means, rel=1e-5)
    single = _build("MODEL.BOUNDARY.NUM_CLASSES", 1)
    assert single.head.classes is None
    found, again = single.describe(BoundaryMaps(logits, None, None), 0, segments)
    assert found.tolist() == [0, 0] and torch.equal(scores, again)


def test_padding_has_no_object():
    interior, border, _ = _make_touching()
    maps = BoundaryMaps(_to_logits(interior, border), None, torch.zeros(1, 4, 40, 60))
    segments = _build().group(maps, 0, (20, 60))
    assert segments.grid == (20, 60) and len(segments) == 2
    assert len(segments.cells) == 2 * 18 * 12


def test_crowds_and_padding_are_left_out_of_the_loss():
    model = _build()
    masks = torch.zeros(2, 30, 30, dtype=torch.bool)
    masks[0, 5:15, 5:15] = True
    masks[1, 12:28, 5:25] = True
    truth = Instances((30, 30), gt_masks=BitMasks(masks), gt_classes=torch.tensor([1, 0]))
    truth.gt_is_crowd = torch.tensor([False, True])
    images = ImageList(torch.zeros(1, 3, 32, 32), [(30, 30)])
    targets = model.assign(None, images, [truth])
    assert not targets.valid[0, 20, 10] and not targets.valid[0, 31, 31]
    assert targets.valid[0, 13, 10] and targets.boundary[0, 13, 10] == INTERIOR


@pytest.mark.parametrize("loss", VARIANTS)
@pytest.mark.parametrize("objects", [True, False])
def test_every_variant_trains_and_infers(loss, objects):
    overrides = ["MODEL.BOUNDARY.LOSS", loss, "MODEL.BOUNDARY.OBJECTS", objects]
    model = _build(*overrides, "MODEL.BOUNDARY.T_SEED", 0.0, "MODEL.BOUNDARY.T_MASK", 0)
    batch = [make_input(64, 64, [[4, 4, 30, 40], [30, 4, 60, 60]])]
    model.train()
    with EventStorage():
        losses = model(batch)
    assert ("loss_objects" in losses) == (objects and loss != "sigmoid")
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert len(model(batch)[0]["instances"]) > 0


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("LOSS", "C", r"MODEL\.BOUNDARY\.LOSS.*A, B, sigmoid, weighted"),
        ("T_SEED", 2.0, r"MODEL\.BOUNDARY\.T_SEED"),
        ("T_MASK", 300, r"MODEL\.BOUNDARY\.T_MASK"),
        ("MIN_SIZE", 0, r"MODEL\.BOUNDARY\.MIN_SIZE"),
        ("MASK_RESIZE", "area", r"MODEL\.BOUNDARY\.MASK_RESIZE"),
        ("IN_FEATURES", ["u2"], r"MODEL\.BOUNDARY\.IN_FEATURES.*u1"),
        ("IN_FEATURES", [], r"MODEL\.BOUNDARY\.IN_FEATURES.*one map"),
    ],
)
def test_bad_values_are_named(key, value, named):
    with pytest.raises(ConfigError, match=named):
        _build(f"MODEL.BOUNDARY.{key}", value)


def test_a_coarser_map_is_refused():
    overrides = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    with pytest.raises(ConfigError, match=r"p2 of .*build_resnet_fpn_backbone has stride 4"):
        _build(*overrides, "MODEL.BOUNDARY.IN_FEATURES", ["p2"])


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'instancezoo\[bottomup\]'"):
        classify_pixels(_draw_boxes((8, 8), [(2, 2, 6, 6)]))
