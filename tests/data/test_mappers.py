"""What a model is given: bit masks, no crowds, converted images, and words for broken ones."""

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.detection_utils import read_image as read_image_of_detectron2
from detectron2.structures import BitMasks, BoxMode
from PIL import Image

from instancezoo.config import get_cfg
from instancezoo.data.coco_dataset import check_coco, make_records
from instancezoo.data.images import ImageError, read_image
from instancezoo.data.mappers import MAX_FAILURES_IN_A_ROW, InstanceMapper, build_mapper
from instancezoo.errors import ConfigError

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.MIN_SIZE_TEST = HEIGHT
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[20:30, 40:55] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    polygon = [[5, 10, 25, 10, 25, 18, 5, 18]]
    fixed = {"bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0}
    return {
        "file_name": str(tmp_path / "photo.png"),
        "image_id": 1,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [
            fixed | {"bbox": [5, 10, 20, 8], "category_id": 0, "segmentation": polygon},
            fixed | {"bbox": [40, 20, 15, 10], "category_id": 1, "segmentation": rle},
            fixed | {"bbox": [0, 0, 60, 40], "category_id": 1, "segmentation": rle, "iscrowd": 1},
        ],
    }


def test_objects_without_masks_are_for_box_detectors(cfg: CfgNode, record: dict[str, Any]) -> None:
    del record["annotations"][0]["segmentation"]

    cfg.MODEL.MASK_ON = True
    with_masks = build_mapper(cfg, is_train=True)(record)["instances"]
    cfg.MODEL.MASK_ON = False
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [1.0, 1.0]
    boxes_only = build_mapper(cfg, is_train=True)(record)["instances"]

    assert with_masks.gt_classes.tolist() == [1] and with_masks.has("gt_masks")
    assert boxes_only.gt_classes.tolist() == [0, 1] and not boxes_only.has("gt_masks")
    assert boxes_only.gt_boxes.tensor.tolist() == [[5, 10, 25, 18], [40, 20, 55, 30]]


def test_polygons_and_rle_become_bit_masks_and_crowds_go(
    cfg: CfgNode, record: dict[str, Any]
) -> None:
    before = copy.deepcopy(record)

    mapped = build_mapper(cfg, is_train=True)(record)

    assert record == before
    assert "annotations" not in mapped
    image = mapped["image"]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, HEIGHT, WIDTH))
    pixels = read_image(record["file_name"], "BGR")
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels.copy()))
    instances = mapped["instances"]
    assert isinstance(instances.gt_masks, BitMasks)
    expected = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    expected[0, 10:18, 5:25] = True
    expected[1, 20:30, 40:55] = True
    assert torch.equal(instances.gt_masks.tensor, expected)
    assert instances.gt_classes.tolist() == [0, 1]
    assert instances.gt_boxes.tensor.tolist() == [[5, 10, 25, 18], [40, 20, 55, 30]]


def test_masks_follow_flip_and_resize(cfg: CfgNode, record: dict[str, Any]) -> None:
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.MIN_SIZE_TRAIN = (2 * HEIGHT,)
    seen = set()
    mapper = build_mapper(cfg, is_train=True)
    for seed in range(8):
        np.random.seed(seed)  # noqa: NPY002  (what Detectron2's augmentations draw from)
        instances = mapper(record)["instances"]
        assert instances.image_size == (2 * HEIGHT, 2 * WIDTH)
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.equal(boxes, instances.gt_boxes.tensor.float())
        seen.add(tuple(boxes[0].tolist()))
    assert seen == {(10, 20, 50, 36), (70, 20, 110, 36)}


def test_a_crop_cuts_boxes_to_their_masks_and_leaves_out_the_rest(
    cfg: CfgNode, record: dict[str, Any]
) -> None:
    triangle = [[0, 0, 30, 0, 0, 40]]
    record["annotations"][0] |= {"segmentation": triangle, "bbox": [0, 0, 30, 40]}
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [10, 12]
    cfg.INPUT.MIN_SIZE_TRAIN = (10,)
    mapper = build_mapper(cfg, is_train=True)
    counts = set()
    for seed in range(30):
        np.random.seed(seed)  # noqa: NPY002
        mapped = mapper(record)
        assert mapped["image"].shape == (3, 10, 12)
        instances = mapped["instances"]
        counts.add(len(instances))
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.equal(boxes, instances.gt_boxes.tensor.float())
        assert instances.gt_masks.tensor.flatten(1).any(1).all()
    assert counts == {0, 1}


def test_a_cropped_polygon_is_the_crop_of_its_mask(cfg: CfgNode, record: dict[str, Any]) -> None:
    star = [[3.2, 1.0, 50.7, 20.1, 4.4, 33.3, 30.5, 5.5, 28.1, 39.0]]
    record["annotations"] = [record["annotations"][0] | {"segmentation": star}]
    cropped, full = (
        InstanceMapper(cfg, is_train=True, augmentations=list(transforms))(record)["instances"]
        for transforms in ([T.CropTransform(7, 5, 30, 20)], [])
    )
    expected = full.gt_masks.tensor[:, 5:25, 7:37]
    assert expected.any()
    # pycocotools rounds vertices, to a fifth of a pixel, toward the corner of the frame.
    assert (cropped.gt_masks.tensor != expected).sum() <= 6


def test_images_of_the_training_size_are_not_resized(cfg: CfgNode, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cfg.INPUT.MIN_SIZE_TRAIN = (128,)
    cfg.INPUT.FORMAT = "RGB"
    record = {"file_name": str(tmp_path / "a.png"), "height": 128, "width": 128, "annotations": []}
    image = build_mapper(cfg, is_train=True)(record)["image"]
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels))


@pytest.mark.parametrize("only_crowds", [True, False])
def test_without_objects_there_are_empty_masks(
    cfg: CfgNode, record: dict[str, Any], only_crowds: bool
) -> None:
    record["annotations"] = record["annotations"][2:] if only_crowds else []
    instances = build_mapper(cfg, is_train=True)(record)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)


def test_a_one_pixel_object_stays_and_an_empty_one_goes(
    cfg: CfgNode, record: dict[str, Any]
) -> None:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    empty = mask_util.encode(mask)
    mask[3, 4] = 1
    fixed = {"bbox_mode": BoxMode.XYWH_ABS, "bbox": [4, 3, 1, 1], "category_id": 0}
    pixel = mask_util.encode(mask)
    record["annotations"] = [fixed | {"segmentation": rle} for rle in (pixel, empty)]
    instances = build_mapper(cfg, is_train=True)(record)["instances"]
    assert instances.gt_masks.tensor.nonzero().tolist() == [[0, 3, 4]]


def test_inference_gets_no_ground_truth(cfg: CfgNode, record: dict[str, Any]) -> None:
    mapped = build_mapper(cfg, is_train=False)(record)
    assert set(mapped) == {"file_name", "image_id", "height", "width", "image"}


def test_semantic_labels_come_along(cfg: CfgNode, record: dict[str, Any], tmp_path: Path) -> None:
    labels = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    mapped = build_mapper(cfg, is_train=True)(record)
    assert torch.equal(mapped["sem_seg"], torch.from_numpy(labels).long())


def test_semantic_labels_come_from_a_folder(
    cfg: CfgNode, record: dict[str, Any], tmp_path: Path
) -> None:
    cfg.INPUT.SEMANTIC_MAPS = str(tmp_path / "maps")
    with pytest.raises(ConfigError, match=r"INPUT\.SEMANTIC_MAPS '.*maps'"):
        InstanceMapper(cfg, is_train=True)
    (tmp_path / "maps").mkdir()
    file = tmp_path / "maps" / "photo.png"
    with pytest.raises(ImageError, match=r"maps/photo\.png"):
        InstanceMapper(cfg, is_train=True)(record)
    assert "sem_seg" not in InstanceMapper(cfg, is_train=False)(record)
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)

    palette = Image.new("P", (WIDTH, HEIGHT))  # colours are for the eye, indices are the classes
    palette.putdata(list(labels.flatten() % 200))
    palette.putpalette([255 - i // 3 for i in range(768)])
    palette.save(file)
    found = InstanceMapper(cfg, is_train=True)(record)["sem_seg"]
    assert torch.equal(found, torch.from_numpy(labels % 200))

    Image.fromarray(labels.astype(np.uint16)).save(file)
    found = InstanceMapper(cfg, is_train=True)(record)["sem_seg"]
    assert torch.equal(found, torch.from_numpy(labels))


def test_inference_gets_semantic_maps_that_are_an_input(
    cfg: CfgNode, record: dict[str, Any], tmp_path: Path
) -> None:
    labels = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(labels).save(tmp_path / "photo.png")
    cfg.INPUT.SEMANTIC_MAPS_TEST = str(tmp_path)
    assert "sem_seg" not in InstanceMapper(cfg, is_train=False)(record)
    cfg.INPUT.SEMANTIC_INPUT = True
    found = InstanceMapper(cfg, is_train=False)(record)
    assert found["sem_seg"].shape == found["image"].shape[1:]
    assert torch.equal(found["sem_seg"], torch.from_numpy(labels).long())
    cfg.INPUT.SEMANTIC_MAPS_TEST = str(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"INPUT\.SEMANTIC_MAPS_TEST '.*none' is no folder"):
        InstanceMapper(cfg, is_train=False)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH, 3), (HEIGHT, WIDTH + 1)])
def test_a_semantic_map_of_another_kind_or_size_is_refused(
    cfg: CfgNode, record: dict[str, Any], tmp_path: Path, shape: tuple[int, ...]
) -> None:
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(record["sem_seg_file_name"])
    named = "3" if len(shape) == 3 else f"{WIDTH + 1} x {HEIGHT}"
    with pytest.raises(ImageError, match=rf"labels\.png'.*{named}"):
        InstanceMapper(cfg, is_train=True)(record)


def test_an_unknown_mapper_is_named(cfg: CfgNode) -> None:
    cfg.INPUT.MAPPER = "instanse"
    with pytest.raises(KeyError, match=r"INPUT\.MAPPER.*'instanse'.*instance"):
        build_mapper(cfg, is_train=True)


def test_augmentations_can_be_given_in_person(cfg: CfgNode, record: dict[str, Any]) -> None:
    mapper = InstanceMapper(cfg, is_train=True, augmentations=[])
    cfg.INPUT.MIN_SIZE_TRAIN = (400,)
    assert mapper(record)["image"].shape == (3, HEIGHT, WIDTH)


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_training_leaves_an_unreadable_image_out(
    cfg: CfgNode, record: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.effect_noise((WIDTH, HEIGHT), 50).save(tmp_path / "broken.jpg")
    _truncate(tmp_path / "broken.jpg")
    broken = record | {"file_name": str(tmp_path / "broken.jpg")}
    mapper = build_mapper(cfg, is_train=True)
    dataset = MapDataset(DatasetFromList([broken, record]), mapper)
    with caplog.at_level(logging.WARNING, logger="instancezoo"):
        for _ in range(20):
            assert dataset[0]["file_name"] == record["file_name"]
    assert mapper.unreadable_paths == {broken["file_name"]}
    (message,) = [r.message for r in caplog.records if "broken.jpg" in r.message]
    assert "\n" not in message


@pytest.mark.parametrize("num_images", [1, 3, 50])
def test_training_ends_when_no_image_is_readable(
    num_images: int, cfg: CfgNode, record: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    records = [record | {"file_name": f"nowhere/{i}.jpg"} for i in range(num_images)]
    dataset = MapDataset(DatasetFromList(records), build_mapper(cfg, is_train=True))
    # Of few images, Detectron2 runs out before ten failures; its error is a ValueError as well.
    with pytest.raises(ValueError) as raised:
        dataset[0]
    if num_images >= MAX_FAILURES_IN_A_ROW:
        assert "10 images" in str(raised.value) and "nowhere/" in str(raised.value)
    assert "nowhere/0.jpg" in caplog.text


@pytest.mark.parametrize("is_train", [True, False])
def test_an_image_of_another_size_counts_as_broken(
    is_train: bool, cfg: CfgNode, record: dict[str, Any]
) -> None:
    record["width"] += 1
    mapper = build_mapper(cfg, is_train)
    if is_train:
        assert mapper(record) is None
    else:
        with pytest.raises(ImageError, match=r"photo\.png.*60 x 40.*61 x 40"):
            mapper(record)


PIXELS = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "F"])
@pytest.mark.parametrize("format", ["BGR", "RGB", "L", "RGBA", "HSV", "CMYK", "YUV-BT.601"])
def test_modes_are_converted_as_detectron2_does(mode: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(PIXELS).convert(mode).save(path)
    try:
        expected = read_image_of_detectron2(str(path), format)
    except ValueError:  # Pillow cannot convert one into the other
        with pytest.raises(ImageError, match=r"a\.tiff"):
            read_image(path, format)
        return
    image = read_image(path, format)
    assert image.shape == (9, 7, {"L": 1, "RGBA": 4, "CMYK": 4}.get(format, 3))
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sixteen_bits", [True, False])
def test_photos_are_turned_upright(orientation: int, sixteen_bits: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[274] = orientation
    grey = PIXELS[:, :, 0]
    stored = grey.astype(np.uint16) * 256 if sixteen_bits else grey
    Image.fromarray(stored).save(path, exif=exif)
    upright = {
        1: grey,
        2: grey[:, ::-1],
        3: grey[::-1, ::-1],
        4: grey[::-1],
        5: grey.T,
        6: grey[::-1].T,
        7: grey[::-1, ::-1].T,
        8: grey.T[::-1],
    }[orientation]
    np.testing.assert_array_equal(read_image(path, "RGB"), np.stack([upright] * 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_keep_the_high_byte(suffix: str, tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [511, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}", "BGR")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[:, :, 0], [[0, 0, 1], [1, 128, 255]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([[0, 7, 255]], [[0, 7, 255]]), ([[0, 256, 70000]], [[0, 1, 255]])],
)
def test_32_bit_whole_numbers_hold_8_or_16_bits(
    values: list[list[int]], expected: list[list[int]], tmp_path: Path
) -> None:
    Image.fromarray(np.array(values, dtype=np.int32)).save(tmp_path / "a.tiff")
    image = read_image(tmp_path / "a.tiff", "BGR")
    np.testing.assert_array_equal(image[:, :, 2], expected)


def test_one_pixel_is_an_image(cfg: CfgNode, tmp_path: Path) -> None:
    Image.new("L", (1, 1), 200).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 1, "width": 1}
    mapped = build_mapper(cfg, is_train=False)(record)
    assert (mapped["image"] == 200).all()
    assert mapped["image"].shape == (3, HEIGHT, HEIGHT)


def test_unreadable_images_are_one_line_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.effect_noise((50, 50), 50).save(tmp_path / "truncated.png")
    _truncate(tmp_path / "truncated.png")
    (tmp_path / "text.jpg").write_text("no picture\n")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    Image.new("L", (50, 50)).save(tmp_path / "huge.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ImageError, match=r"huge\.png"):
            read_image(tmp_path / "huge.png", "BGR")
    for name in ("truncated.png", "text.jpg", "empty.png", "folder.png", "missing.png", "nul\0"):
        with pytest.raises(ImageError) as raised:
            read_image(tmp_path / name, "BGR")
        assert str(tmp_path / name) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_real_records_are_mapped(cfg: CfgNode, shared_data: Path) -> None:
    for json_file, images in (
        ("coco/annotations/instances_val2017.json", "coco/val2017"),
        ("nuclei/annotations/instances_val.json", "nuclei/val"),
    ):
        clean, _ = check_coco(shared_data / json_file, shared_data / images)
        mapper = build_mapper(cfg, is_train=True)
        for record in make_records(clean, shared_data / images)[:8]:
            instances = mapper(record)["instances"]
            wanted = sum(a["iscrowd"] == 0 for a in record["annotations"])
            # At 40 pixels the smallest objects may cover no pixel centre.
            assert 0.5 * wanted <= len(instances) <= wanted
            assert instances.gt_masks.tensor.shape[1:] == instances.image_size
