"""`instancezoo doctor`: grids and scale ranges of the SOLO family against the data."""

import json
import shlex
from collections import Counter

import numpy as np
import pytest
import torch

from instancezoo import model_zoo
from instancezoo.doctor import Severity
from instancezoo.doctor.context import InputSize
from instancezoo.doctor.diagnose import diagnose, read_dataset
from instancezoo.solo.doctor import (
    MAX_LOST_SHARE,
    PlacedObjects,
    count_cells,
    format_overrides,
    measure_grid,
    place_objects,
    propose_grid,
    propose_num_grid,
    propose_scale_ranges,
)
from instancezoo.solo.targets import GridObjects, GridSpec, assign_cells

STRIDES = [8, 8, 16, 32, 32]
TINY = model_zoo.get_config_file("solov2/solov2_tiny")


def place(boxes, image=None, canvas=(128, 128)):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    image = np.zeros(len(boxes), np.int64) if image is None else np.array(image)
    return PlacedObjects(boxes, image, np.tile(canvas, (int(image.max(initial=0)) + 1, 1)))


def box(x, y, side):
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def lattice(step, side, canvas=128):
    places = np.arange(step / 2, canvas, step)
    return place([box(x, y, side) for y in places for x in places])


def one_level(side):
    return GridSpec([side], [[0, 2048]])


def test_last_object_of_an_image_keeps_a_shared_cell():
    # the first two share a cell, the third is alone, the fourth is in another image
    boxes = [box(24, 24, 10), box(25, 25, 10), box(100, 100, 10), box(24, 24, 10)]
    claimed, kept = count_cells(place(boxes, [0, 0, 0, 1]), one_level(4))
    assert claimed[:, 0].tolist() == [1, 1, 1, 1]
    assert kept[:, 0].tolist() == [0, 1, 1, 1]


def test_object_that_loses_some_cells():
    # 0.2 * 100 pixels around the centre span 3 x 3 cells of 8; the small one takes the middle
    claimed, kept = count_cells(place([box(60, 60, 100), box(61, 61, 4)]), one_level(16))
    assert claimed[:, 0].tolist() == [9, 1]
    assert kept[:, 0].tolist() == [8, 1]


def test_no_object_claims_nothing():
    claimed, kept = count_cells(place([]), one_level(16))
    assert claimed.shape == kept.shape == (0, 1)


@pytest.mark.parametrize("sides", [(3,), (7,), (12, 5), (16, 9, 4)])
def test_cells_are_those_of_the_targets(sides):
    rng = np.random.default_rng(sides[0])
    ranges = [[1, 2048], [20, 40], [30, 2048]][: len(sides)]
    low = rng.integers(0, 90, (24, 2))
    boxes = np.concatenate([low, np.minimum(low + rng.integers(1, 60, (24, 2)), [160, 128])], 1)
    image = np.sort(rng.integers(0, 2, 24))
    masks = torch.zeros(24, 128, 160, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    masks = [masks[image == n] for n in range(2)]
    objects = GridObjects(
        torch.from_numpy(boxes), torch.arange(24), torch.from_numpy(image), masks, 2, (128, 160)
    )
    claimed, kept = count_cells(place(boxes, image, (160, 128)), GridSpec(sides, ranges))
    for counts, last_only in ((claimed, False), (kept, True)):
        grid = GridSpec(sides, ranges, one_object_per_cell=last_only)
        targets = assign_cells(objects, grid, num_classes=24)
        expected = Counter(zip(targets.instance.tolist(), targets.level.tolist(), strict=True))
        levels = range(len(sides))
        assert counts.tolist() == [[expected[i, level] for level in levels] for i in range(24)]


def test_measured_shares():
    objects = place([box(24, 24, 10), box(25, 25, 10), box(90, 90, 20), box(60, 60, 90)])
    fit = measure_grid(objects, GridSpec([4, 4], [[1, 12], [10, 40]], 0.0))
    assert fit.caught.tolist() == [0.5, 0.75]
    np.testing.assert_allclose(fit.lost, [1 / 2, 1 / 3])
    assert fit.cut.tolist() == [0, 0]
    assert fit.uncaught == 0.25
    assert "1 of 4 in no range" in str(fit)
    assert fit.hidden == 0.5  # the largest has no level, the first no cell on either
    assert not fit.is_good


@pytest.mark.parametrize("num_idle,is_good", [(0, True), (4, True), (5, False)])
def test_idle_levels_are_no_fault_as_long_as_objects_have_one(num_idle, is_good):
    objects = lattice(step=16, side=8)
    ranges = [[1, 2048]] * (5 - num_idle) + [[500, 2048]] * num_idle
    assert measure_grid(objects, GridSpec([16] * 5, ranges)).is_good == is_good


def test_ranges_share_the_load():
    sizes = np.geomspace(10, 1000, 1001)
    ranges = np.array(propose_scale_ranges(sizes, STRIDES), dtype=float)
    assert ranges[0, 0] == 1
    assert ranges[-1, 1] == 2048
    on_level = (sizes[:, None] >= ranges[:, 0]) & (sizes[:, None] <= ranges[:, 1])
    assert on_level.any(axis=1).all()
    assert on_level.sum(axis=1).mean() < 2.05
    assert (np.diff(ranges, axis=0) > 0).all()
    borders = np.quantile(sizes, [0.2, 0.4, 0.6, 0.8])
    assert ((ranges[1:, 0] < borders) & (ranges[:-1, 1] > borders)).all()
    np.testing.assert_allclose(ranges[:-1, 1] / ranges[1:, 0], 2, rtol=0.1)


@pytest.mark.parametrize("sizes", [[], [3.0] * 50, [50.0] * 50, [5000.0], [2.0, 7.5, 30.0]])
def test_ranges_of_odd_sizes_ascend_without_a_gap(sizes):
    sizes = np.array(sizes)
    ranges = np.array(propose_scale_ranges(sizes, STRIDES))
    assert (ranges[:, 0] < ranges[:, 1]).all()
    assert (np.diff(ranges[:, 0]) > 0).all()
    assert (ranges[1:, 0] < ranges[:-1, 1]).all()
    assert ranges[-1, 1] >= max(2048, sizes.max(initial=0))


def test_small_objects_stay_on_fine_levels():
    ranges = propose_scale_ranges(np.linspace(3, 7, 100), STRIDES)
    assert ranges[2][0] > 7


def test_one_level_catches_all():
    assert propose_scale_ranges(np.array([4.0, 9.0]), [8]) == [[1, 2048]]


def test_smallest_side_that_separates():
    objects = lattice(step=128 / 12, side=4)
    side = propose_num_grid(objects, 64, 0.2)
    assert side == 12
    for other, is_enough in ((8, False), (12, True)):
        kept = count_cells(objects, one_level(other))[1]
        assert ((kept == 0).mean() <= MAX_LOST_SHARE) == is_enough


def test_side_never_exceeds_the_feature_map():
    assert propose_num_grid(lattice(step=4, side=3), 10, 0.2) == 10
    assert propose_num_grid(place([]), 4, 0.2) == 4


def write_dataset(folder, boxes):
    from PIL import Image

    Image.new("RGB", (128, 128)).save(folder / "0.png")
    annotations = []
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        outline = [x1, y1, x2, y1, x2, y2, x1, y2]
        size = [x2 - x1, y2 - y1]
        annotation = {"id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0}
        annotation |= {"bbox": [x1, y1, *size], "area": size[0] * size[1]}
        annotations.append({**annotation, "segmentation": [outline]})
    images = [{"id": 1, "file_name": "0.png", "height": 128, "width": 128}]
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "a"}]
    (folder / "truth.json").write_text(json.dumps(content))
    return f"{folder.name}={folder}/truth.json:{folder}"


def run_check(argument, overrides=(), config=TINY):
    name = argument.split("=")[0]
    words = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()", *overrides]
    return [f for f in diagnose(config, words, [argument]) if f.check == "grids"]


SPREAD = [box(40 * (i % 3) + 24, 40 * (i // 3) + 24, 12 + 6 * i) for i in range(6)]
SPREAD += [box(64, 64, 70), box(64, 70, 110)]


def test_fitting_grid_is_in_order_and_others_get_a_proposal(tmp_path):
    folder = tmp_path / "grids_spread"
    folder.mkdir()
    argument = write_dataset(folder, SPREAD)
    (found,) = run_check(argument)
    assert found.severity is Severity.OK
    overrides = ["MODEL.SOLOV2.FPN_SCALE_RANGES", "[[1,4],[2,8],[4,16],[8,24],[12,30]]"]
    (found,) = run_check(argument, overrides)
    assert found.severity is Severity.WARNING
    assert "MODEL.SOLOV2.NUM_GRIDS" in found.remedy


@pytest.mark.parametrize("config", ["solo/solo_tiny", "solov2/solov2_tiny"])
def test_shipped_grids_fit_the_built_in_data(config):
    findings = diagnose(model_zoo.get_config_file(config))
    (found,) = [f for f in findings if f.check == "grids"]
    assert found.severity is Severity.OK


@pytest.mark.parametrize("config", ["solo/solo_tiny", "mask_rcnn/mask_rcnn_tiny"])
def test_key_follows_the_method_and_others_have_no_grids(tmp_path, config):
    folder = tmp_path / f"grids_{config.split('/')[0]}"
    folder.mkdir()
    argument = write_dataset(folder, [box(20 + i, 20 + i, 8) for i in range(9)])
    found = run_check(argument, config=model_zoo.get_config_file(config))
    if config.startswith("solo"):
        assert "MODEL.SOLO.NUM_GRIDS" in found[0].remedy
    else:
        assert found == []


def test_nuclei(shared_data):
    folder = shared_data / "nuclei"
    name = "grids_nuclei"
    argument = f"{name}={folder}/annotations/instances_train.json:{folder}/train"
    (found,) = run_check(argument)
    assert found.severity is Severity.WARNING
    words = shlex.split(found.remedy.split("set ")[1])[:4]
    objects = place_objects([read_dataset(name, True)], InputSize(128, 192), 32)
    current = GridSpec([16, 14, 12, 8, 6], [[1, 24], [16, 40], [32, 64], [48, 96], [80, 256]])
    better = propose_grid(objects, STRIDES, 0.2)
    assert words == shlex.split(format_overrides("MODEL.SOLOV2", better))
    before, after = measure_grid(objects, current), measure_grid(objects, better)
    assert after.hidden < 0.9 * before.hidden
    assert after.uncaught == 0
    (pasted,) = run_check(argument, words)
    assert "set " not in pasted.remedy  # its own proposal cannot be bettered by another
    assert "INPUT.MIN_SIZE_TRAIN" in pasted.remedy
