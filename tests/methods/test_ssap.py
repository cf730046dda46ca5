"""SSAP on cases that are counted by hand."""

import time

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage

from instancezoo.errors import ConfigError
from instancezoo.layers.affinities import compare_neighbours
from instancezoo.modeling.grouping import Segments, vote_classes
from instancezoo.ssap.cascade import (
    PARTITIONS,
    LevelMaps,
    carry_over,
    drop_segments,
    number_nodes,
    partition_levels,
)
from instancezoo.ssap.head import PyramidMaps
from instancezoo.ssap.ssap import find_foreground
from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything, make_input

TINY = "ssap/ssap_tiny"
WINDOW, CERTAIN = 5, 8.0


def _build(*overrides):
    return build_seeded_model(get_tiny_config(TINY, list(overrides))).eval()


def _make_maps(boxes, size=(32, 48), num_levels=5, num_classes=4):
    """Maps of a perfect network; object i has class i modulo the number of classes."""
    ids = torch.zeros(1, *size, dtype=torch.long)
    for number, (y0, x0, y1, x1) in enumerate(boxes):
        ids[0, y0:y1, x0:x1] = number + 1
    cls_logits, affinity_logits = [], []
    for level in range(num_levels):
        sampled = ids[:, :: 2**level, :: 2**level]
        is_same = compare_neighbours(sampled, torch.ones_like(sampled, dtype=torch.bool), WINDOW)[0]
        affinity_logits.append(CERTAIN * (2 * is_same.float() - 1))
        classes = torch.where(sampled > 0, (sampled - 1) % num_classes, num_classes)
        one_hot = torch.nn.functional.one_hot(classes, num_classes + 1)
        cls_logits.append(CERTAIN * one_hot.permute(0, 3, 1, 2).float())
    return PyramidMaps(cls_logits, affinity_logits), ids[0]


BOXES = [(2, 2, 14, 20), (2, 20, 14, 40), (14, 2, 30, 20), (15, 30, 31, 33)]


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("cascade", [True, False])
def test_objects_side_by_side_are_told_apart(op_version, partition, cascade):
    maps, ids = _make_maps(BOXES)
    model = _build("MODEL.SSAP.PARTITION", partition, "MODEL.SSAP.CASCADE", cascade)
    segments = model.group(maps, 0, (32, 48))
    assert torch.equal(segments.draw_labels(), ids)
    classes, scores = model.describe(maps, 0, segments)
    assert classes.tolist() == [0, 1, 2, 3] and (scores > 0.99).all()


def test_no_segment_has_cells_of_the_padding():
    maps, ids = _make_maps(BOXES)
    for grid in ((23, 37), (5, 47), (1, 1)):
        segments = _build().group(maps, 0, grid)
        assert segments.grid == grid
        assert torch.equal(segments.draw_labels() > 0, ids[: grid[0], : grid[1]] > 0)


def test_more_than_a_hundred_objects_are_found_if_asked_for():
    places = [(1 + 4 * row, 1 + 4 * column) for row in range(12) for column in range(15)]
    maps, _ = _make_maps([(y, x, y + 4, x + 4) for y, x in places], size=(64, 64))
    for limit in (1000, 100, 7):
        model = _build("MODEL.SSAP.MAX_INSTANCES", limit)
        assert len(model.group(maps, 0, (64, 64))) == 180
        (found,) = model.decode(maps, ImageList(torch.empty(1, 3, 256, 256), [(256, 256)]))
        assert len(found) == min(limit, 180)


def test_only_what_lies_inside_a_segment_is_carried_over():
    labels = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [1, 1, 0, 2, 2]])
    expected = torch.zeros(8, 10, dtype=torch.long)
    expected[2:6, 2:4] = 1  # the cells (1, 1) and (2, 1)
    assert torch.equal(carry_over(labels, (8, 10)), expected)
    assert torch.equal(carry_over(labels, (7, 9)), expected[:7, :9])
    for size in ((1, 1), (2, 5), (1, 3)):
        assert not carry_over(torch.ones(size, dtype=torch.long), (2 * size[0], 2 * size[1])).any()


def test_nodes_are_numbered_by_first_appearance():
    foreground = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    carried = torch.tensor([[0, 0, 2, 2], [0, 2, 1, 0]])
    assert number_nodes(foreground, carried).tolist() == [[0, -1, 1, 1], [2, 1, 3, -1]]
    none = torch.zeros(2, 3, dtype=torch.long)
    assert (number_nodes(none > 0, none) == -1).all()
    assert number_nodes(none == 0, none).flatten().tolist() == list(range(6))


def test_a_carried_part_stays_whole_whatever_the_finer_level_says():
    shapes = [(12, 12), (6, 6)]
    levels = []
    for size, certainty in zip(shapes, (-CERTAIN, CERTAIN), strict=True):
        probs = torch.zeros(2, *size)
        probs[0 if certainty > 0 else 1] = 1.0
        logits = torch.full((25, *size), certainty)
        levels.append(LevelMaps(logits, probs, find_foreground(probs, 0.0)))
    fine, coarse = partition_levels(levels, window=5, partition=PARTITIONS["gaec"])
    assert (coarse == 1).all()
    expected = torch.zeros(12, 12, dtype=torch.long)
    expected[2:10, 2:10] = 1
    assert torch.equal(fine, expected)
    # Without one foreground cell on the finest level it has no class.
    assert not drop_segments(fine, levels[0].foreground, 1).any()


def test_segments_that_are_too_small_are_dropped():
    labels = torch.tensor([[1, 1, 2, 0], [3, 3, 3, 4], [5, 5, 5, 5]])
    foreground = labels != 5
    assert drop_segments(labels, foreground, 2).tolist() == [[1, 1, 0, 0], [2, 2, 2, 0], [0] * 4]
    assert not drop_segments(torch.zeros_like(labels), foreground, 1).any()


def test_background_cells_have_no_vote_but_count_in_the_score():
    probs = torch.zeros(3, 1, 4)
    probs[:, 0, 0] = torch.tensor([0.1, 0.5, 0.4])
    probs[:, 0, 1:3] = torch.tensor([0.3, 0.0, 0.7])[:, None]
    probs[:, 0, 3] = torch.tensor([0.6, 0.2, 0.2])
    segments = Segments.from_labels(torch.tensor([[1, 1, 1, 2]]), torch.ones(2))
    classes, scores = vote_classes(probs, segments, find_foreground(probs, 0.0))
    assert classes.tolist() == [1, 0]
    torch.testing.assert_close(scores, torch.tensor([0.5 / 3, 0.6]))


def test_losses_ignore_an_image_of_crowds_only():
    image = make_input(64, 64, [[0, 0, 64, 64]])
    image["instances"].gt_is_crowd = torch.tensor([True])
    with EventStorage():
        losses = _build().train()([image])
    assert len(losses) == 10 and all(loss == 0 for loss in losses.values())


def test_losses_are_the_same_for_a_seed():
    model = _build().train()
    batch = [make_input(96, 128, [[10, 10, 80, 80]])]
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        with EventStorage():
            runs.append(model(batch))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_padding_does_not_change_a_loss():
    """Cells of the padding have no target: neither a class nor an affinity."""
    model = _build("MODEL.SSAP.POSITIVE_DROP", 0.0).train()
    maps, _ = _make_maps(BOXES, size=(32, 64))
    record = make_input(100, 200, [[8, 8, 90, 90]])
    images = model.preprocess([record])
    targets = model.assign(maps, images, [record["instances"]])
    before = model.losses(maps, targets)
    for level, affinities in enumerate(maps.affinity_logits):
        affinities[:, :, :, -(-50 // 2**level) :] += 5
        maps.cls_logits[level][:, 0, -(-25 // 2**level) :] += 5
    after = model.losses(maps, targets)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("height,width", [(128, 128), (800, 1333)])
def test_an_untrained_network_is_partitioned_in_seconds(height, width):
    """All cells are foreground and all affinities near one half: the most that can be to do."""
    model = build_seeded_model(keep_everything(get_tiny_config(TINY))).eval()
    size = [-(-side // 64) * 16 for side in (height, width)]
    generator = torch.Generator().manual_seed(0)
    levels = [[side // 2**level for side in size] for level in range(5)]
    maps = PyramidMaps(
        [0.1 * torch.randn(1, 5, *sides, generator=generator) for sides in levels],
        [0.1 * torch.randn(1, 25, *sides, generator=generator) for sides in levels],
    )
    start = time.process_time()
    segments = model.group(maps, 0, (-(-height // 4), -(-width // 4)))
    model.describe(maps, 0, segments)
    assert time.process_time() - start < 10 and len(segments) > 10


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("IN_FEATURES", ["p2", "p4"], "twice"),
        ("IN_FEATURES", ["p3", "p2"], "twice"),
        ("IN_FEATURES", [], "p2, p3"),
        ("IN_FEATURES", ["p2", "p9"], "p2, p3"),
        ("WINDOW", 4, "odd"),
        ("WINDOW", 1, "between 3 and"),
        ("CONVS_DIM", 48, "GN.*32"),
        ("AFFINITY_LOSS_WEIGHTS", [1.0, 2.0], "5 numbers"),
        ("AFFINITY_LOSS_WEIGHTS", [1.0, 2.0, -1.0, 0.0, 0.0], "5 numbers"),
        ("SEM_LOSS_WEIGHTS", [1.0], "5 numbers"),
        ("PARTITION", "kmeans", "gaec, mutex"),
        ("POSITIVE_DROP", 1.5, "between 0 and 1"),
        ("MASK_RESIZE", "cubic", "nearest"),
        ("FG_MARGIN", 2.0, "between -1 and 1"),
        ("MIN_SIZE", 0, "1 or more"),
    ],
)
def test_value_is_refused_with_its_key(key, value, named):
    cfg = get_tiny_config(TINY, [f"MODEL.SSAP.{key}", value])
    with pytest.raises(ConfigError, match=rf"MODEL\.SSAP\.{key}\b.*{named}"):
        build_model(cfg)
