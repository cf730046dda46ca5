"""Deep metric learning on cases that are counted by hand."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from instancezoo import model_zoo
from instancezoo.errors import ConfigError
from instancezoo.metric.head import MetricMaps
from instancezoo.metric.targets import (
    label_points,
    list_object_classes,
    sample_background,
    sample_object_points,
)
from instancezoo.modeling.object_maps import IGNORED, ObjectMaps
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input

NAME = "metric/metric_tiny"
GRID = (40, 60)
OBJECTS = [(2, (4, 4, 16, 16)), (2, (4, 16, 16, 28)), (1, (16, 4, 28, 16))]


def _build(**keys):
    words = [word for key, value in keys.items() for word in (f"MODEL.METRIC.{key}", value)]
    return build_seeded_model(get_tiny_config(NAME, words)).eval()


def _make_maps(objects, num_classifiers=4, num_classes=4, embed_dim=8):
    """Maps of a perfect network: each object has a corner of its own, the background another."""
    embeddings = torch.zeros(1, embed_dim, *GRID)
    logits = torch.zeros(1, num_classifiers, num_classes + 1, *GRID)
    logits[:, :, 0] = 8
    for index, (label, (y0, x0, y1, x1)) in enumerate(objects):
        embeddings[0, index, y0:y1, x0:x1] = 3
        logits[0, :, 0, y0:y1, x0:x1] = 0
        logits[0, :, label + 1, y0:y1, x0:x1] = 8
    return MetricMaps(embeddings, logits)


@pytest.mark.parametrize("grouping", ["seeds", "meanshift"])
def test_objects_side_by_side_are_told_apart(grouping):
    maps = _make_maps(OBJECTS)
    model = _build(GROUPING=grouping)
    segments = model.group(maps, 0, GRID)
    assert len(segments) == 3
    for _, (y0, x0, y1, x1) in OBJECTS:
        place = y0 * GRID[1] + x0
        (owner,) = segments.owners[segments.cells == place].tolist()
        mine = segments.cells[segments.owners == owner]
        assert len(mine) == 144
        rows, columns = mine // GRID[1], mine % GRID[1]
        assert [rows.min(), rows.max() + 1] == [y0, y1]
        assert [columns.min(), columns.max() + 1] == [x0, x1]
    classes, scores = model.describe(maps, 0, segments)
    assert sorted(classes.tolist()) == [1, 2, 2] and (scores > 0.95).all()


@pytest.mark.parametrize("grouping", ["seeds", "meanshift"])
def test_no_segment_has_cells_of_the_padding(grouping):
    maps = _make_maps([(0, (10, 10, 30, 50))])
    segments = _build(GROUPING=grouping).group(maps, 0, (20, 60))
    assert segments.grid == (20, 60) and len(segments.cells) == 10 * 40
    assert int(segments.cells.max()) < 20 * 60


@pytest.mark.parametrize("grouping", ["seeds", "meanshift"])
def test_masks_reach_the_images_size(grouping):
    model = _build(GROUPING=grouping)
    segments = model.group(_make_maps([(0, (4, 5, 8, 10))]), 0, GRID)
    (mask,) = model.make_masks(segments, (157, 236)).bitmasks(157, 236)
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    # the contour lies between the centres of the cells on both sides
    assert 14 <= rows.min() <= 18 and 30 <= rows.max() <= 34
    assert 18 <= columns.min() <= 22 and 38 <= columns.max() <= 42


def test_masks_overlap_where_one_seed_reaches_further():
    maps = _make_maps([(0, (4, 4, 24, 24)), (1, (4, 24, 24, 44))])
    embeddings = torch.zeros_like(maps.embeddings)
    embeddings[0, 0] = 0.1 * torch.arange(GRID[1])  # far pixels are unlike each other
    maps.logits[0, 1:] = 0
    maps.logits[0, 1:, 0] = 9  # only the lowest threshold has seeds
    segments = _build(NMS_THRESH=0.6).group(MetricMaps(embeddings, maps.logits), 0, GRID)
    counts = segments.cells.bincount()
    assert len(segments) > 1 and counts.max() > 1


def test_suppression_may_compare_one_class_only():
    maps = _make_maps([(0, (4, 4, 24, 24))])
    maps.logits[0, :, :, 4:24, 14:24] = 0
    maps.logits[0, :, 3, 4:24, 14:24] = 8  # half of the object looks like another class
    maps.embeddings[0, 1, 4:24, 14:24] = 0.3  # so that a seed there is diverse enough
    found = [len(_build(NMS_PER_CLASS=each).group(maps, 0, GRID)) for each in (False, True)]
    assert found == [1, 2]


def test_masks_may_be_limited_to_the_foreground():
    maps = _make_maps([(0, (4, 4, 24, 24))])
    maps.embeddings[0, 0, 30:, :] = 3  # background that looks like the object
    sizes = [len(_build(FG_INTERSECT=cut).group(maps, 0, GRID).cells) for cut in (False, True)]
    assert sizes == [400 + 600, 400]


def test_seeds_are_limited():
    maps = _make_maps(OBJECTS)
    assert len(_build(MAX_SEEDS=2).group(maps, 0, GRID)) == 2
    every, best = (_build(MAX_INSTANCES=limit).group(maps, 0, GRID) for limit in (3, 2))
    assert len(every) == 3 and len(best.margins) == 2
    assert torch.equal(best.margins, every.margins[:2])
    assert len(_build(MIN_OBJECTIVE=1.0).group(maps, 0, GRID)) == 0


def _make_targets():
    ids = torch.zeros(3, 8, 8, dtype=torch.long)
    ids[0, 2:4, 2:6] = 1
    ids[0, 7, 7] = 3  # the second has no cell
    ids[1] = 1
    classes = torch.where(ids > 0, ids, 4)
    classes[2, :4] = IGNORED
    return ObjectMaps(ids, classes, (3, 1, 0))


def test_points_of_objects():
    targets = _make_targets()
    seen = set()
    for _ in range(200):
        points = sample_object_points(targets, 5)
        assert points.owners.tolist() == [0] * 5 + [2] * 5 + [3] * 5
        assert points.images.tolist() == [0] * 10 + [1] * 5
        assert points.sizes.tolist() == [8] * 5 + [1] * 5 + [64] * 5
        ids = targets.ids.flatten(1)[points.images, points.cells]
        assert ids.tolist() == [1] * 5 + [3] * 5 + [1] * 5
        seen.update(points.cells[:5].tolist())
    assert seen == {y * 8 + x for y in (2, 3) for x in (2, 3, 4, 5)}


def test_points_of_the_background():
    targets, seen = _make_targets(), set()
    for _ in range(200):
        points = sample_background(targets, 4, torch.tensor([4, 7, 10]))
        assert points.images.tolist() == [0] * 4 + [2] * 10  # the second has no background
        assert (targets.classes.flatten(1)[points.images, points.cells] == 4).all()
        seen.update(points.cells[4:].tolist())
    assert seen == set(range(32, 64))


def test_labels_of_points():
    targets = _make_targets()
    classes = list_object_classes(targets.ids[0], targets.classes[0])
    assert classes[[0, 2]].tolist() == [1, 3]
    ious = torch.tensor([[0.9, 0.5, 0.51], [0.1, 0.2, 1.0]])
    objects = torch.tensor([[0, 0, 2], [2, 2, 2]])
    assert label_points(ious, objects, classes, 0.5).tolist() == [[2, 0, 4], [0, 0, 4]]
    nothing = label_points(torch.zeros(2, 3), torch.zeros_like(objects), classes[:0], 0.5)
    assert not nothing.any()


def test_the_seeds_loss_grows_with_the_iteration():
    model = _build(SEED_LOSS_WEIGHT=0.3, SEED_RAMP=0.5).train()  # of 600 iterations
    batch = [make_input(64, 64, [[8, 8, 40, 60]])]
    found = []
    for iteration in (0, 75, 300, 500):
        torch.manual_seed(0)
        with EventStorage(iteration):
            found.append(float(model(batch)["loss_seed"].detach()))
    torch.manual_seed(0)
    with torch.no_grad(), EventStorage():  # losses of a validation have the whole weight
        whole = float(model(batch)["loss_seed"])
    assert found[0] == 0
    assert found[1:] == pytest.approx([whole / 4, whole, whole], rel=1e-3)
    assert float(model(batch)["loss_seed"].detach()) > 0  # without a trainer


@pytest.mark.parametrize("loss", ["metric", "discriminative"])
@pytest.mark.parametrize("grouping", ["seeds", "meanshift"])
def test_every_loss_goes_with_every_grouping(loss, grouping):
    model = _build(EMBED_LOSS=loss, GROUPING=grouping, COORD_MODE="image").train()
    batch = [make_input(64, 64, [[8, 8, 40, 60], [42, 8, 60, 60]]), make_input(64, 48, [])]
    with EventStorage(100):
        losses = model(batch)
    assert set(losses) == {"loss_embed", "loss_seed" if grouping == "seeds" else "loss_sem_seg"}
    assert all(value > 0 and value.isfinite() for value in losses.values())
    with torch.no_grad():
        assert len(model.eval()(batch)) == 2


@pytest.mark.parametrize("grouping", ["seeds", "meanshift"])
def test_an_image_of_crowds_only(grouping):
    image = make_input(64, 64, [[0, 0, 64, 64]])
    image["instances"].gt_is_crowd = torch.tensor([True])
    with EventStorage(100):
        losses = _build(GROUPING=grouping).train()([image])
    assert all(value == 0 for value in losses.values())


@pytest.mark.parametrize("coordinates", ["none", "image"])
def test_a_u_net_infers_at_the_images_resolution(coordinates):
    small = ["MODEL.UNET.WIDTHS", [8, 16, 32], "MODEL.DEVICE", "cpu"]
    keys = [*small, "MODEL.METRIC.COORD_MODE", coordinates]
    model = build_seeded_model(model_zoo.get_config("metric/metric_unet", keys))
    image = make_input(48, 40, [[4, 4, 30, 30]])
    image["instances"].gt_classes.zero_()
    with EventStorage():
        losses = model([image])
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        maps = model.eval()._run([image])[1]
    assert maps.embeddings.shape == (1, 16, 48, 40) and model.stride == 1


def test_copies_have_one_embedding_without_a_position():
    """Pixels of copies have the same convolutional response."""
    tile = make_input(128, 128, [], seed=5)["image"]
    gaps = []
    for mode in ("none", "image"):
        maps = _build(COORD_MODE=mode, COORD_UNIT=16.0)._run([{"image": tile.repeat(1, 1, 4)}])[1]
        gap = maps.embeddings[0, :, 16, 49] - maps.embeddings[0, :, 16, 81]
        gaps.append(float(gap.detach().norm()))
    # the borders of the image are far away, but not out of sight
    assert gaps[0] < 0.1 and gaps[1] == pytest.approx(128 / 16, abs=0.1)


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("EMBED_LOSS", "triplet", "metric, discriminative"),
        ("GROUPING", "greedy", "seeds, meanshift"),
        ("PAIR_WEIGHT", "mean", "sum, product"),
        ("COORD_MODE", "pixel", "image, index, none"),
        ("SEED_THRESHS", [], "SEED_THRESHS"),
        ("SEED_THRESHS", [0.5, 1.5], "SEED_THRESHS"),
        ("STRIDE", 8, r"STRIDE.*1, 2, 4"),
        ("IN_FEATURES", ["p9"], "IN_FEATURES"),
        ("IN_FEATURES", [], "one map or more"),
        ("CONVS_DIM", 60, "multiple of 32"),
        ("NUM_SAMPLES", 0, "NUM_SAMPLES"),
        ("BANDWIDTH", 0.0, "BANDWIDTH"),
        ("MIN_OBJECTIVE", 2.0, "MIN_OBJECTIVE"),
        ("MASK_RESIZE", "cubic", "bilinear, nearest"),
    ],
)
def test_bad_values_are_named(key, value, named):
    with pytest.raises(ConfigError, match=named):
        _build(**{key: value})


def test_a_position_takes_two_channels():
    with pytest.raises(ConfigError, match="EMBED_DIM is 1"):
        _build(EMBED_DIM=1, COORD_MODE="image")


@pytest.mark.parametrize("name", ["metric/metric_nuclei", "metric/metric_unet"])
def test_settings_for_nuclei_allow_for_crowded_images(name):
    node = model_zoo.get_config(name).MODEL.METRIC
    assert node.MAX_INSTANCES > 131  # objects of the bowl's fullest image here
    assert node.GROUPING == "meanshift" or node.MAX_SEEDS >= node.MAX_INSTANCES
