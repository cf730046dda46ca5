"""INPUT.AUGMENTATIONS: what it builds, what it refuses, and that models train with it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.utils.events import EventStorage

import instancezoo
from instancezoo.config import get_cfg, load_cfg
from instancezoo.data import (
    AUGMENTATION_REGISTRY,
    ExpandCanvas,
    PhotometricDistort,
    RandomSampleCrop,
    build_augmentations,
    build_mapper,
)
from instancezoo.data.mappers import InstanceMapper
from instancezoo.data.transforms import Resize, ResizeShortestEdge
from instancezoo.engine.loader import build_train_loader, make_validation_config
from instancezoo.engine.trainer import Trainer
from instancezoo.errors import ConfigError
from instancezoo.testing import build_seeded_model, get_tiny_config

DOCS = Path(instancezoo.__file__).parents[2] / "docs" / "augmentations.md"


def read_block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def example(tmp_path: Path) -> str:
    """The example of the documentation as a file."""
    (tmp_path / "example.yaml").write_text(read_block("yaml"))
    return str(tmp_path / "example.yaml")


def steps_of(cfg: Any, is_train: bool = True) -> list[type]:
    return [type(step) for step in InstanceMapper(cfg, is_train).augmentations.augs]


def test_the_example_builds_the_published_pipeline(example: str, tmp_path: Path) -> None:
    architecture = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNNCompactMasks"]
    cfg = load_cfg(example, architecture)
    ours = [PhotometricDistort, ExpandCanvas, RandomSampleCrop]
    assert steps_of(cfg) == [*ours, Resize, T.RandomFlip]
    assert steps_of(cfg, is_train=False) == [Resize]
    photometric, canvas, _ = build_augmentations(cfg)
    assert photometric.channel_order == cfg.INPUT.FORMAT == "BGR"
    assert canvas.fill == tuple(cfg.MODEL.PIXEL_MEAN) and canvas.max_ratio == 4
    # As written beside a checkpoint, and read again.
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    assert load_cfg(str(tmp_path / "dump.yaml")).INPUT == cfg.INPUT


def test_without_the_key_nothing_is_added() -> None:
    assert steps_of(get_cfg()) == [ResizeShortestEdge, T.RandomFlip]


def test_it_is_set_on_the_command_line_too() -> None:
    canvases = "{'ExpandCanvas': {'prob': 1, 'max_ratio': 2, 'fill': [7]}}, {'ExpandCanvas': None}"
    text = f"['RandomSampleCrop', {canvases}]"
    crop, canvas, default = build_augmentations(load_cfg("", ["INPUT.AUGMENTATIONS", text]))
    assert isinstance(crop, RandomSampleCrop)
    assert (canvas.prob, canvas.max_ratio, canvas.fill) == (1, 2, (7,))
    assert (default.prob, default.max_ratio, len(default.fill)) == (0.5, 4, 3)


def test_the_table_of_the_documentation_is_complete() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, _ in AUGMENTATION_REGISTRY:
        rows = text[text.index(f"| `{name}`") :].split("\n")
        end = next(i for i, row in enumerate(rows[1:], 1) if not row.startswith("| | `"))
        listed = [row.split("|")[2].strip(" `") for row in rows[:end]]
        with pytest.raises(ConfigError) as error:
            load_cfg("", ["INPUT.AUGMENTATIONS", [{name: {"nonsense": 1}}]])
        assert str(error.value).endswith(f"it takes: {', '.join(listed)}")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("ExpandCanvs", "'ExpandCanvs'.*did you mean 'ExpandCanvas'.*RandomSampleCrop"),
        ("", "PhotometricDistort"),
        (3, "3.*one name with its arguments"),
        (None, "None.*one name with its arguments"),
        ({}, "one name with its arguments"),
        ({"ExpandCanvas": {}, "RandomSampleCrop": {}}, "one name with its arguments"),
        ({"ExpandCanvas": 2.0}, "one name with its arguments"),
        ({7: {}}, "no augmentation has that name"),
        ({"ExpandCanvas": {"ratio": 2}}, "no argument 'ratio'.*prob, max_ratio"),
        ({"ExpandCanvas": {"fill": 3}}, "fill is 3"),
        ({"ExpandCanvas": {"fill": []}}, "fill is"),
        ({"ExpandCanvas": {"fill": [1, "a"]}}, "a value of fill is 'a'"),
        ({"PhotometricDistort": {"channel_order": "HSV"}}, "channel_order is 'HSV'"),
        ({"ExpandCanvas": {1: 2}}, "no argument 1"),
        ({"ExpandCanvas": {"prob": 2}}, "prob is 2; it must be between 0 and 1"),
        ({"ExpandCanvas": {"prob": True}}, "prob is True"),
        ({"ExpandCanvas": {"max_ratio": 0.5}}, "max_ratio is 0.5"),
        ({"ExpandCanvas": {"max_ratio": "4"}}, "max_ratio is '4'"),
        ({"ExpandCanvas": {"max_ratio": 10**400}}, "max_ratio is 1000"),
        ({"ExpandCanvas": {"max_ratio": float("nan")}}, "max_ratio is nan"),
        ({"PhotometricDistort": {"contrast": 1.0}}, "contrast is 1.0.*two ascending numbers"),
        ({"PhotometricDistort": {"contrast": [2, 1]}}, "contrast is"),
        ({"PhotometricDistort": {"contrast": "ab"}}, "contrast is 'ab'"),
        ({"PhotometricDistort": {"hue": None}}, "hue is None"),
        ({"RandomSampleCrop": {"num_trials": 0}}, "num_trials is 0"),
        ({"RandomSampleCrop": {"unchanged_prob": 0}}, "unchanged_prob is 0"),
    ],
)
def test_bad_entries_name_the_key_and_the_entry(entry: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)INPUT\.AUGMENTATIONS.*{words}"):
        load_cfg("", ["INPUT.AUGMENTATIONS", ["RandomSampleCrop", entry]])


def test_only_red_green_and_blue_have_a_hue() -> None:
    names = ["INPUT.AUGMENTATIONS", ["PhotometricDistort"]]
    with pytest.raises(ConfigError, match=r"PhotometricDistort needs INPUT\.FORMAT BGR or RGB"):
        load_cfg("", [*names, "INPUT.FORMAT", "HSV"])
    grey = ["MODEL.PIXEL_MEAN", [100.0], "MODEL.PIXEL_STD", [50.0], "INPUT.FORMAT", "L"]
    assert load_cfg("", [*names, *grey]).INPUT.AUGMENTATIONS == ["PhotometricDistort"]


def test_another_one_can_be_registered() -> None:
    before = dict(AUGMENTATION_REGISTRY._obj_map)
    try:
        exec(read_block("python"), {})
        cfg = get_cfg()
        cfg.INPUT.AUGMENTATIONS = [{"Mirror": {"prob": 1.0}}]
        (mirror,) = build_augmentations(cfg)
    finally:
        AUGMENTATION_REGISTRY._obj_map = before
    image = np.arange(6, dtype=np.uint8).reshape(1, 6, 1)
    transform = mirror.get_transform(image)
    assert transform.apply_image(image).ravel().tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("name", ["solo/solo_tiny", "mask_rcnn/mask_rcnn_tiny", "fcos/fcos_tiny"])
def test_methods_train_a_step_with_the_example(name: str, example: str, few_shapes: str) -> None:
    cfg = get_tiny_config(name, ["DATASETS.TRAIN", (few_shapes,), "SOLVER.IMS_PER_BATCH", 4])
    cfg.merge_from_file(example)
    cfg.INPUT.FIXED_SIZE = (96, 112)
    batch = next(iter(build_train_loader(cfg, build_mapper(cfg, is_train=True), seed=0)))
    for image in batch:
        assert image["image"].shape == (3, 96, 112) and image["image"].dtype == torch.float32
        sides = (
            image["instances"].gt_boxes.tensor[:, 2:] - image["instances"].gt_boxes.tensor[:, :2]
        )
        assert len(sides) and sides.min() >= 4
    model = build_seeded_model(cfg)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_validation_loss_is_of_whole_images(
    example: str, few_shapes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = get_tiny_config("solo/solo_tiny", ["DATASETS.TEST", (few_shapes,)])
    cfg.merge_from_file(example)
    monkeypatch.setattr(Trainer, "__init__", lambda self, cfg: setattr(self, "cfg", cfg))
    loader = Trainer(cfg)._build_validation_loader()
    mapper = loader.loader.dataset.mapper
    assert [type(step) for step in mapper.augmentations.augs] == [Resize]


def test_the_validation_loss_has_semantic_maps_of_its_own(few_shapes: str, tmp_path: Path) -> None:
    overrides = ["DATASETS.TEST", (few_shapes,), "TEST.VALIDATION_LOSS", True]
    cfg = get_tiny_config("htc/htc_tiny", [*overrides, "INPUT.SEMANTIC_MAPS", "maps/train"])
    with pytest.raises(ConfigError, match=r"'maps/train' .* INPUT\.SEMANTIC_MAPS_TEST"):
        Trainer(cfg)
    cfg.INPUT.SEMANTIC_MAPS_TEST = "maps/none"
    with pytest.raises(ConfigError, match=r"INPUT\.SEMANTIC_MAPS_TEST 'maps/none' is no folder"):
        Trainer(cfg)
    cfg.INPUT.SEMANTIC_MAPS_TEST = str(tmp_path)
    used = make_validation_config(cfg)
    assert Path(used.INPUT.SEMANTIC_MAPS) == tmp_path
    assert cfg.INPUT.SEMANTIC_MAPS == "maps/train"
