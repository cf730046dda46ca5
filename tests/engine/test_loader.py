"""The training stream depends on seed and iteration alone."""

import gc
import random
import weakref
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import TrainingSampler

from instancezoo.data.images import ImageError
from instancezoo.data.mappers import build_mapper
from instancezoo.engine.loader import (
    EndlessBatchSampler,
    StreamState,
    build_train_loader,
    isolated_rng,
)
from instancezoo.errors import ConfigError


def _batches(state, count, size=10, is_wide=None):
    sampler = EndlessBatchSampler(lambda s: TrainingSampler(size, seed=s), 3, state, is_wide)
    return list(islice(sampler, count))


def test_entering_later_gives_the_same_batches():
    whole = _batches(StreamState(7), 20)
    assert _batches(StreamState(7, start_iter=12), 8) == whole[12:]
    assert _batches(StreamState(8), 20) != whole


def test_every_image_comes_once_an_epoch_and_positions_are_unique():
    keys = [key for batch in _batches(StreamState(0), 10) for key in batch]
    assert sorted(index for _, index in keys) == sorted(list(range(10)) * 3)
    assert len({position for position, _ in keys}) == 30


def test_grouping_keeps_wide_and_tall_apart_and_resumes():
    is_wide = [index % 3 == 0 for index in range(10)]
    whole = _batches(StreamState(1), 30, is_wide=is_wide)
    assert all(len({is_wide[index] for _, index in batch}) == 1 for batch in whole)
    assert _batches(StreamState(1, start_iter=13), 17, is_wide=is_wide) == whole[13:]


def _images(cfg, count, start_iter=0):
    loader = build_train_loader(cfg, build_mapper(cfg, is_train=True), seed=3)
    loader.batch_sampler.state.start_iter = start_iter
    return [[x["image"] for x in batch] for batch in islice(loader, count)]


def _equal(images, others):
    return all(map(torch.equal, images, others))


def test_augmentation_does_not_depend_on_workers_or_on_where_the_stream_is_entered(small_cfg):
    small_cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    whole = _images(small_cfg, 6)
    flipped = _images(small_cfg, 6, start_iter=0)
    assert all(map(_equal, whole, flipped))
    small_cfg.DATALOADER.NUM_WORKERS = 2
    assert all(map(_equal, _images(small_cfg, 4, start_iter=2), whole[2:]))


def test_isolated_rng_leaves_the_outside_alone():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    with isolated_rng(5, 6):
        inside = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002
    with isolated_rng(5, 6):
        assert (random.random(), np.random.rand(), torch.rand(1)) == inside  # noqa: NPY002


def test_unknown_sampler_is_an_error(small_cfg):
    small_cfg.DATALOADER.SAMPLER_TRAIN = "Nonsense"
    with pytest.raises(ConfigError, match="RepeatFactorTrainingSampler"):
        _images(small_cfg, 1)


def test_nothing_to_train_on_is_an_error(small_cfg):
    small_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN"):
        _images(small_cfg, 1)
    small_cfg.DATASETS.TRAIN = ("records_without_objects",)
    empty = {"file_name": "a.png", "height": 9, "width": 9, "image_id": 1, "annotations": []}
    DatasetCatalog.register("records_without_objects", lambda: [empty])
    MetadataCatalog.get("records_without_objects").thing_classes = ["a", "b", "c", "d"]
    with pytest.raises(ConfigError, match=r"records_without_objects .*FILTER_EMPTY_ANNOTATIONS"):
        _images(small_cfg, 1)


def test_objects_without_masks_are_for_configs_without_masks(small_cfg):
    records = DatasetCatalog.get(small_cfg.DATASETS.TRAIN[0])[:4]
    for record in records[:3]:
        for annotation in record["annotations"]:
            annotation.pop("segmentation", None)
    MetadataCatalog.get("boxes_and_masks").thing_classes = ["a", "b", "c", "d"]
    DatasetCatalog.register("boxes_and_masks", lambda: records)
    small_cfg.DATASETS.TRAIN = ("boxes_and_masks",)
    small_cfg.MODEL.MASK_ON = True
    assert len(build_train_loader(small_cfg, None, 0).dataset.records) == 1
    small_cfg.MODEL.MASK_ON = False
    assert len(build_train_loader(small_cfg, None, 0).dataset.records) == 4
    small_cfg.MODEL.MASK_ON = True
    records.pop()
    with pytest.raises(ConfigError, match=r"boxes_and_masks has a segmentation.*MASK_ON False"):
        build_train_loader(small_cfg, None, 0)


def test_absent_file_of_a_built_in_set_is_an_error(small_cfg):
    DatasetCatalog.register("set_without_file", Path("nowhere/instances.json").read_text)
    small_cfg.DATASETS.TRAIN = ("set_without_file",)
    with pytest.raises(ConfigError, match=r"nowhere/instances.json.*DETECTRON2_DATASETS"):
        _images(small_cfg, 1)


class _Record(dict):
    """A dict that can be watched."""


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_loader_holds_the_records_once_and_serialized(small_cfg, name):
    records = [_Record(record) for record in DatasetCatalog.get(small_cfg.DATASETS.TRAIN[0])]
    watched = [weakref.ref(record) for record in records]
    DatasetCatalog.register(f"watched_{name}", lambda: records.copy())
    MetadataCatalog.get(f"watched_{name}").thing_classes = ["a", "b", "c", "d"]
    small_cfg.DATASETS.TRAIN = (f"watched_{name}",)
    small_cfg.DATALOADER.SAMPLER_TRAIN = name
    loader = build_train_loader(small_cfg, build_mapper(small_cfg, is_train=True), seed=3)
    DatasetCatalog.remove(f"watched_{name}")
    records.clear()
    gc.collect()
    assert loader is not None and not any(ref() is not None for ref in watched)


def test_images_that_lose_their_objects_are_replaced_by_position(small_cfg):
    small_cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    small_cfg.INPUT.AUGMENTATIONS = ["ExpandCanvas", "RandomSampleCrop"]
    small_cfg.INPUT.MIN_BOX_SIDE = 20.0

    mapper = build_mapper(small_cfg, is_train=True)
    records = build_train_loader(small_cfg, mapper, seed=3).dataset.records
    found = [mapper(records[index % len(records)]) for index in range(60)]
    assert 5 < sum(image is None for image in found) < 55  # it is up to the augmentation

    whole = _images(small_cfg, 8)
    assert all(map(_equal, whole, _images(small_cfg, 8)))
    assert all(map(_equal, whole[5:], _images(small_cfg, 3, start_iter=5)))
    small_cfg.DATALOADER.NUM_WORKERS = 2
    assert all(map(_equal, whole[2:], _images(small_cfg, 6, start_iter=2)))


def test_data_without_a_large_object_end_training_with_the_key(small_cfg):
    small_cfg.INPUT.MIN_BOX_SIDE = 1000.0
    with pytest.raises(ImageError, match=r"101 images in a row.*INPUT\.MIN_BOX_SIDE"):
        _images(small_cfg, 1)


def test_unreadable_images_are_replaced_by_position(small_cfg, tmp_path):
    records = [dict(record) for record in DatasetCatalog.get(small_cfg.DATASETS.TRAIN[0])]
    for record in records[:4]:
        record["file_name"] = str(tmp_path / f"missing_{record['image_id']}.png")
    DatasetCatalog.register("half_missing", lambda: records)
    try:
        small_cfg.DATASETS.TRAIN = ("half_missing",)
        small_cfg.INPUT.MIN_SIZE_TRAIN = (64,)
        whole = _images(small_cfg, 9)
        # A later process has to find out again which images are missing.
        assert all(map(_equal, whole[6:], _images(small_cfg, 3, start_iter=6)))
    finally:
        DatasetCatalog.remove("half_missing")
