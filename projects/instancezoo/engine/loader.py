"""A training stream that can be entered at any iteration.

The data of an iteration depend only on the seed and its number: not on the number of loader
processes, and not on interruptions of the training before it.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    InferenceSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, Sampler

from instancezoo.data.images import ImageError
from instancezoo.data.mappers import (
    MAX_FAILURES_IN_A_ROW,
    SkippingMapper,
    explain_failure,
    is_trained_on,
)
from instancezoo.engine.stop import heed_parent_alone
from instancezoo.errors import ConfigError, check_choice

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")
MAX_REPLACEMENTS = 100  # images that are tried in the place of one

_logger = logging.getLogger(__name__)


@dataclass
class StreamState:
    """Entry point of the stream; shared by sampler and data set, changed on resume."""

    seed: int
    start_iter: int = 0


class EndlessBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless shuffled batches of `(position in the stream, index of the image)`.

    Images of one batch are all wide or all tall if `is_wide` is given, as Detectron2 groups them.

    Args:
        make_sampler: seed -> endless sampler of this process' share of the indices.
        batch_size: images per batch of this process.
        state: seed and first iteration.
        is_wide: one flag per image, or None for no grouping.
    """

    def __init__(
        self,
        make_sampler: Callable[[int], Sampler[int]],
        batch_size: int,
        state: StreamState,
        is_wide: list[bool] | None = None,
    ) -> None:
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.state = state
        self.is_wide = is_wide

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # A skipped batch costs a few integer operations: no image is read for it.
        return itertools.islice(self._all_batches(), self.state.start_iter, None)

    def _all_batches(self) -> Iterator[list[tuple[int, int]]]:
        world_size, rank = comm.get_world_size(), comm.get_rank()
        groups: dict[bool, list[tuple[int, int]]] = defaultdict(list)
        for count, index in enumerate(self.make_sampler(self.state.seed)):
            group = groups[self.is_wide[index] if self.is_wide else True]
            group.append((count * world_size + rank, index))
            if len(group) == self.batch_size:
                yield group.copy()
                group.clear()


class SeededDataset(Dataset[Any]):
    """Maps `(position, index)` to a mapped image, augmented by position.

    For an image that the mapper leaves out, another one is taken; which one depends on the position
    alone.

    Args:
        records: of the data set.
        mapper: record -> model input, or None to take another image.
        state: seed of the augmentations.
    """

    def __init__(
        self, records: Sequence[dict[str, Any]], mapper: SkippingMapper, state: StreamState
    ) -> None:
        self.records = records
        self.mapper = mapper
        self.state = state

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Raises `ImageError` if too many images in a row are left out."""
        position, index = key
        with isolated_rng(self.state.seed, position):
            mapped = self.mapper(self.records[index])
        if mapped is None:
            mapped = self._map_another(position)
        return mapped

    def _map_another(self, position: int) -> dict[str, Any]:
        num_tried = 0
        for attempt, index in enumerate(self._list_others(position), start=1):
            record = self.records[index]
            # One known to fail is not read again; the outcome is the same if it is.
            if str(record.get("file_name")) in self.mapper.unreadable_paths:
                continue
            with isolated_rng(self.state.seed, position, attempt):
                mapped = self.mapper(record)
            if mapped is not None:
                return mapped
            num_tried += 1
            if num_tried == MAX_REPLACEMENTS:
                break
        raise ImageError(
            f"{num_tried + 1} images in a row have nothing to train on: lower INPUT.MIN_BOX_SIDE, "
            "or check the augmentations"
        )

    def _list_others(self, position: int) -> Iterator[int]:
        generator = np.random.default_rng([self.state.seed, position])
        for _ in range(MAX_REPLACEMENTS):  # a few images may be tried several times
            yield from generator.permutation(len(self.records)).tolist()


def seed_rng(*key: int) -> None:
    """Seed Python, NumPy and torch (all devices) from a tuple of non-negative integers."""
    _seed_all(key, torch.manual_seed)


def _seed_all(key: tuple[int, ...], seed_torch: Callable[[int], Any]) -> None:
    words = np.random.SeedSequence(key).generate_state(3, dtype=np.uint32).tolist()
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002  (Detectron2's augmentations use this generator)
    seed_torch(words[2])


@contextmanager
def isolated_rng(*key: int) -> Iterator[None]:
    """Seed every CPU generator inside the block, and restore its state afterwards."""
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    _seed_all(key, torch.default_generator.manual_seed)
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])  # noqa: NPY002
        torch.set_rng_state(saved[2])


def build_train_loader(cfg: Any, mapper: Mapper, seed: int) -> DataLoader[Any]:
    """Build the endless, resumable loader of `DATASETS.TRAIN`.

    Args:
        cfg: reads `DATASETS`, `DATALOADER` and `SOLVER.IMS_PER_BATCH`.
        mapper: data set record -> model input, or None to take another image instead; another one
            is also taken after an error, see `SkippingMapper`.
        seed: determines order and augmentation.

    Returns:
        A loader of lists of model inputs; `loader.batch_sampler.state` is its `StreamState`.

    Raises:
        ConfigError: no data set, its file is missing, none of its images has an object, or the
            batch size is not a multiple of the number of processes.
    """
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH} for {world_size} processes: set "
            "it to a multiple of their number"
        )
    records = _read_records(cfg)
    state = StreamState(seed)
    grouping = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    sampler = EndlessBatchSampler(
        _sampler_factory(cfg, records),
        cfg.SOLVER.IMS_PER_BATCH // world_size,
        state,
        [r["width"] > r["height"] for r in records] if grouping else None,
    )
    max_failures = min(MAX_FAILURES_IN_A_ROW, len(records))
    mapper = SkippingMapper(PicklableWrapper(_unwrap(mapper)), max_failures)
    return DataLoader(
        SeededDataset(DatasetFromList(records, copy=False), mapper, state),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=heed_parent_alone,
        # Else the first iteration alone would take a number from the global generator.
        generator=torch.Generator(),
    )


def build_test_loader(
    cfg: Any,
    dataset_names: list[str],
    mapper: Mapper,
    batch_size: int = 1,
) -> TestLoader:
    """Build a loader of test sets: each image once, split among the processes.

    Args:
        cfg: reads DATALOADER.NUM_WORKERS.
        dataset_names: registered data sets.
        mapper: data set record -> model input; after None or an error, the image is left out.
        batch_size: images per batch.
    """
    records = get_detection_dataset_dicts(dataset_names, filter_empty=False)
    dataset = _TestDataset(DatasetFromList(records, copy=False), _unwrap(mapper))
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=InferenceSampler(len(records)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )
    return TestLoader(loader)


def make_validation_config(cfg: Any) -> Any:
    """Make the config whose training mapper maps the test sets for TEST.VALIDATION_LOSS.

    Raises:
        ConfigError: the folder of the test sets' semantic maps is unknown.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.INPUT.SEMANTIC_MAPS and not cfg.INPUT.SEMANTIC_MAPS_TEST:
        raise ConfigError(
            "TEST.VALIDATION_LOSS needs semantic maps of DATASETS.TEST, but INPUT.SEMANTIC_MAPS "
            f"'{cfg.INPUT.SEMANTIC_MAPS}' is the folder of DATASETS.TRAIN: name theirs in "
            "INPUT.SEMANTIC_MAPS_TEST, which may be the same"
        )
    folder = cfg.INPUT.SEMANTIC_MAPS = cfg.INPUT.SEMANTIC_MAPS_TEST
    if folder and not Path(folder).is_dir():
        raise ConfigError(f"INPUT.SEMANTIC_MAPS_TEST '{folder}' is no folder: check the path")
    cfg.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    cfg.INPUT.FIXED_HEIGHTS_TRAIN = ()
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.AUGMENTATIONS, cfg.INPUT.MIN_BOX_SIDE = [], 0.0
    return cfg


def _unwrap(mapper: Mapper) -> Mapper:
    return mapper.mapper if isinstance(mapper, SkippingMapper) else mapper


@dataclass(frozen=True)
class _Failure:
    """An image that cannot be mapped, with the reason in one line."""

    reason: str


class _TestDataset(Dataset[Any]):
    """Maps a record; unlike Detectron2's, it never puts another image in the place of a bad one."""

    def __init__(self, records: Dataset[Any], mapper: Callable[[Any], Any]) -> None:
        self.records = records
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        record = self.records[index]
        path = str(record.get("file_name"))
        try:
            mapped = self.mapper(record)
        except Exception as error:
            return _Failure(explain_failure(path, error))
        return _Failure(f"image '{path}' was left out by its mapper") if mapped is None else mapped


class TestLoader:
    """Batches of mapped images, without those that cannot be mapped: these are named and counted.

    Args:
        loader: of lists of model inputs and failures.
    """

    __test__ = False  # not a test of pytest's

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Number of batches, if no image is left out."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        num_images = num_failures = 0
        for batch in self.loader:
            num_images += len(batch)
            failures = [item for item in batch if isinstance(item, _Failure)]
            num_failures += len(failures)
            for failure in failures:
                _logger.warning("%s; evaluation goes on without it", failure.reason)
            if len(failures) < len(batch):
                yield [item for item in batch if not isinstance(item, _Failure)]
        if num_failures:
            _logger.warning(
                "%d of %d images could not be processed; their objects count as missed",
                num_failures,
                num_images,
            )


def _read_records(cfg: Any) -> list[dict[str, Any]]:
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError(
            "DATASETS.TRAIN is empty: name a data set in the config or on the command line"
        )
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    try:
        records = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except FileNotFoundError as error:  # Detectron2's own sets do not look for them before
        raise ConfigError(
            f"data sets {', '.join(names)} cannot be read: {error}. Put Detectron2's own into the "
            "folder $DETECTRON2_DATASETS, name others by --dataset NAME=json:images"
        ) from error
    except AssertionError as error:  # Detectron2's reaction to an empty list
        raise ConfigError(
            f"no image of {', '.join(names)} can be trained on: {error}. To train on images "
            "without objects, set DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
        ) from error
    return _select_with_masks(records, names, filter_empty) if cfg.MODEL.MASK_ON else records


def _select_with_masks(
    records: list[dict[str, Any]], names: list[str], filter_empty: bool
) -> list[dict[str, Any]]:
    """The images that a model with masks trains on; objects may have a box alone."""
    has_masks = [any(is_trained_on(a, True) for a in r.get("annotations", ())) for r in records]
    has_boxes = any(is_trained_on(a, False) for r in records for a in r.get("annotations", ()))
    if has_boxes and not any(has_masks):
        raise ConfigError(
            f"no annotation of {', '.join(names)} has a segmentation, but the model learns masks: "
            "add masks, or train on boxes alone with a config that has MODEL.MASK_ON False"
        )
    if not filter_empty:
        return records
    return [record for record, kept in zip(records, has_masks, strict=True) if kept]


def _sampler_factory(cfg: Any, records: list[dict[str, Any]]) -> Callable[[int], Sampler[int]]:
    check_choice("DATALOADER.SAMPLER_TRAIN", cfg.DATALOADER.SAMPLER_TRAIN, SAMPLERS)
    if cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler":
        size = len(records)  # the function below must not keep the records in memory
        return lambda seed: TrainingSampler(size, seed=seed)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
