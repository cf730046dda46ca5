"""Canvas and crop: boxes, masks and pixels stay together."""

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from instancezoo.config import get_cfg
from instancezoo.data import windows
from instancezoo.data.mappers import InstanceMapper
from instancezoo.data.windows import (
    CanvasTransform,
    ExpandCanvas,
    ObjectCropTransform,
    RandomSampleCrop,
)

HEIGHT, WIDTH = 60, 90
# Two ellipses and a rectangle that overlap, each painted in a channel of its own.
SHAPES = [
    ("ellipse", (5, 8, 45, 40)),
    ("rectangle", (30, 20, 74, 52)),
    ("ellipse", (60, 4, 88, 30)),
]
PAINT = 200


def draw(kind: str, box: tuple[int, int, int, int]) -> Any:
    """Mask of a shape that touches all sides of its box, XYXY in whole pixels."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    if kind == "rectangle":
        return (x > x0) & (x < x1) & (y > y0) & (y < y1)
    width, height = x1 - x0, y1 - y0
    ellipse = ((2 * x - x0 - x1) / width) ** 2 + ((2 * y - y0 - y1) / height) ** 2
    return ellipse <= 1


MASKS = np.stack([draw(*shape) for shape in SHAPES])


@pytest.fixture(scope="module", params=["rle", "polygons"])
def record(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The image of the shapes; with polygons there are rectangles alone."""
    masks, shapes = MASKS, SHAPES
    if request.param == "polygons":
        shapes = [("rectangle", box) for _, box in SHAPES]
        masks = np.stack([draw(*shape) for shape in shapes])
    path = tmp_path_factory.mktemp("shapes") / "a.png"
    rgb = (masks * PAINT).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(rgb).save(path)
    annotations = []
    for index, (mask, (_, box)) in enumerate(zip(masks, shapes, strict=True)):
        x0, y0, x1, y1 = box
        polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotations.append(
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": index,
                "segmentation": polygon if request.param == "polygons" else rle,
            }
        )
    return {
        "file_name": str(path),
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": annotations,
    }


def make_mapper(*names: Any, fixed: tuple[int, ...] = (), after: tuple[Any, ...] = ()) -> Any:
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.MODEL.PIXEL_MEAN = [0.0, 0.0, 0.0]
    cfg.INPUT.AUGMENTATIONS = list(names)
    cfg.INPUT.FIXED_SIZE, cfg.INPUT.FIXED_SIZE_ANTIALIAS = fixed, not fixed
    mapper = InstanceMapper(cfg, is_train=True)
    if not fixed:  # no resize at all
        augmentations = mapper.augmentations.augs[: len(names)]
        mapper = InstanceMapper(cfg, True, augmentations=[*augmentations, *after])
    return mapper


PIPELINES = [["ExpandCanvas"], ["RandomSampleCrop"], ["ExpandCanvas", "RandomSampleCrop"]]
PIPELINES += [["RandomSampleCrop", "ExpandCanvas"], ["RandomSampleCrop"] * 2]


@pytest.mark.parametrize("names", PIPELINES)
def test_masks_boxes_and_pixels_go_together(names: list[str], record: Any) -> None:
    mapper = make_mapper(*names, after=(T.RandomFlip(),))
    num_cut = num_dropped = 0
    for seed in range(40):
        np.random.seed(seed)  # noqa: NPY002
        mapped = mapper(record)
        instances = mapped["instances"]
        assert len(instances)
        painted = mapped["image"] == PAINT  # (C, H, W)
        extents = instances.gt_masks.get_bounding_boxes().tensor
        for index in range(len(instances)):
            number = int(instances.gt_classes[index])
            assert torch.equal(instances.gt_masks.tensor[index], painted[number])
            x0, y0, x1, y1 = record["annotations"][number]["bbox"]
            box = instances.gt_boxes.tensor[index]
            is_whole = (box[2] - box[0], box[3] - box[1]) == (x1, y1)
            is_rectangle = isinstance(record["annotations"][number]["segmentation"], list)
            if is_whole or is_rectangle:
                assert torch.equal(extents[index], box)
            else:
                assert (extents[index, :2] >= box[:2]).all()
                assert (extents[index, 2:] <= box[2:]).all()
            num_cut += not is_whole
        num_dropped += len(SHAPES) - len(instances)
    has_crop = "RandomSampleCrop" in names
    assert (num_cut > 10 and num_dropped > 10) == has_crop
    assert has_crop or num_cut == num_dropped == 0


@pytest.mark.parametrize("names", [[], *PIPELINES])
def test_resized_masks_are_the_resized_paint(names: list[str], record: Any) -> None:
    mapper = make_mapper(*names, fixed=(47, 53))
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002
        mapped = mapper(record)
        assert mapped["image"].shape == (3, 47, 53)
        instances = mapped["instances"]
        # A pixel between both has half of the paint, give or take the rounding of the sum.
        paint = mapped["image"][instances.gt_classes]
        is_clear = (paint - PAINT / 2).abs() > 1e-3
        assert is_clear.float().mean() > 0.9
        masks = instances.gt_masks.tensor
        assert torch.equal(masks[is_clear], (paint > PAINT / 2)[is_clear])
        boxes, extents = instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor
        assert (extents[:, :2] >= boxes[:, :2] - 1).all()
        assert (extents[:, 2:] <= boxes[:, 2:] + 1).all()


def test_a_seed_gives_the_same_image(record: Any) -> None:
    mapper = make_mapper("PhotometricDistort", "ExpandCanvas", "RandomSampleCrop", fixed=(47, 53))
    images = []
    for seed in (3, 3, 4):
        np.random.seed(seed)  # noqa: NPY002
        images.append(mapper(record)["image"])
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_the_canvas_has_the_mean(dtype: str) -> None:
    fill = (103.94, 116.78, 123.68)
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(dtype)
    canvas = CanvasTransform(2, 3, (11, 9), fill).apply_image(image)
    assert canvas.shape == (11, 9, 3) and canvas.dtype == dtype
    np.testing.assert_array_equal(canvas[3:7, 2:7], image)
    outside = np.ones((11, 9), dtype=bool)
    outside[3:7, 2:7] = False
    expected = np.rint(fill) if dtype == "uint8" else np.array(fill, dtype)
    assert (canvas[outside] == expected).all()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 2), (4, 5, 6)])
def test_other_channels_get_the_mean_of_the_means(shape: tuple[int, ...]) -> None:
    canvas = CanvasTransform(0, 0, (8, 8), (10.0, 20.0, 60.0)).apply_image(np.ones(shape, "f4"))
    assert canvas.shape == (8, 8, *shape[2:])
    assert (canvas[4:] == 30).all() and (canvas[:4, :5] == 1).all()
    six = CanvasTransform(0, 0, (8, 8), range(6)).apply_image(np.ones((4, 5, 6), "u1"))
    assert six[7, 7].tolist() == [0, 1, 2, 3, 4, 5]


def test_labels_are_unknown_on_the_canvas_but_masks_are_empty() -> None:
    canvas = CanvasTransform(1, 0, (3, 4), (0.0,))
    labels = np.full((2, 2), 7, np.uint8)
    assert canvas.apply_segmentation(labels).tolist() == [
        [255, 7, 7, 255],
        [255, 7, 7, 255],
        [255] * 4,
    ]
    assert canvas.for_masks().apply_segmentation(labels).sum() == 4 * 7


def test_points_move_with_the_image() -> None:
    points = np.array([[1.5, 2.0]])
    assert CanvasTransform(3, 4, (20, 20), (0.0,)).apply_coords(points).tolist() == [[4.5, 6.0]]
    assert ObjectCropTransform(1, 2, 5, 5).apply_coords(points).tolist() == [[0.5, 0.0]]


def test_canvases_are_sampled_up_to_the_ratio() -> None:
    np.random.seed(0)  # noqa: NPY002
    image = np.zeros((100, 50, 3), np.uint8)
    transforms = [ExpandCanvas().get_transform(image) for _ in range(2000)]
    canvases = [t for t in transforms if isinstance(t, CanvasTransform)]
    assert 0.45 < len(canvases) / len(transforms) < 0.55
    heights, widths = np.array([canvas.size for canvas in canvases]).T
    assert 100 <= heights.min() < 105 and 390 < heights.max() <= 400
    assert (np.abs(heights - 2 * widths) <= 2).all()
    lefts, tops = np.array([(canvas.left, canvas.top) for canvas in canvases]).T
    assert (lefts >= 0).all() and (lefts + 50 <= widths).all()
    assert (tops >= 0).all() and (tops + 100 <= heights).all()
    assert 0.45 < np.mean(tops / np.maximum(heights - 100, 1)) < 0.55


def test_photos_get_a_canvas_that_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_MAX_CANVAS", 200)
    augmentation = ExpandCanvas(prob=1.0)
    for shape in ((10, 10, 3), (10, 30, 3)):
        for _ in range(50):
            height, width = augmentation.get_transform(np.zeros(shape, np.uint8)).size
            assert height * width <= max(200, shape[0] * shape[1])


# Crop of x 10 to 30 and y 20 to 40.
@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([12, 22, 20, 30], [2, 2, 10, 10]),
        ([5, 22, 20, 30], [0, 2, 10, 10]),
        ([0, 0, 50, 50], [0, 0, 20, 20]),
        ([5, 22, 15, 30], [0, 0, 0, 0]),  # centre on the left edge
        ([5, 22, 15.5, 30], [0, 2, 5.5, 10]),
        ([25, 22, 35, 30], [0, 0, 0, 0]),  # on the right edge
        ([12, 15, 20, 25], [0, 0, 0, 0]),  # on the upper edge
        ([12, 35, 20, 45], [0, 0, 0, 0]),  # on the lower edge
        ([12, 35, 20, 44.5], [2, 15, 10, 20]),
        ([0, 0, 5, 5], [0, 0, 0, 0]),
    ],
)
def test_boxes_are_kept_by_their_centre(box: list[float], expected: list[float]) -> None:
    crop = ObjectCropTransform(10, 20, 20, 20, 100, 100)
    assert crop.apply_box(np.array([box])).tolist() == [expected]
    assert crop.apply_box(np.array([box, [12, 22, 20, 30]])).tolist()[1] == [2, 2, 10, 10]


def sample_crops(boxes: Any, count: int = 600, **arguments: Any) -> list[T.Transform]:
    np.random.seed(1)  # noqa: NPY002
    augmentation = RandomSampleCrop(**arguments)
    image = np.zeros((200, 300, 3), np.uint8)
    return [augmentation.get_transform(image, boxes) for _ in range(count)]


@pytest.mark.parametrize(
    "boxes", [None, np.array([[20.0, 30.0, 50.0, 60.0], [200, 100, 290, 190]])]
)
def test_crops_have_the_published_sizes_and_an_object(boxes: Any) -> None:
    transforms = sample_crops(boxes)
    crops = [t for t in transforms if isinstance(t, ObjectCropTransform)]
    assert 0.12 < 1 - len(crops) / len(transforms) < 0.22  # one of six
    sides = np.array([(crop.h, crop.w) for crop in crops])
    assert (sides >= (59, 89)).all() and (sides <= (200, 300)).all()
    ratios = sides[:, 0] / sides[:, 1]
    assert ratios.min() > 0.48 and ratios.max() < 2.05
    assert all(crop.x0 >= 0 and crop.x0 + crop.w <= 300 for crop in crops)
    assert all(crop.y0 >= 0 and crop.y0 + crop.h <= 200 for crop in crops)
    if boxes is not None:
        assert all(crop.apply_box(boxes).any() for crop in crops)
        assert any(not crop.apply_box(boxes)[0].any() for crop in crops)


def test_corners_are_uniform_where_every_crop_has_the_object() -> None:
    crops = sample_crops(None, 3000, min_scale=0.5, aspect_ratio=(0.01, 100), unchanged_prob=0.01)
    room = np.array(
        [
            (c.y0 / (200 - c.h), c.x0 / (300 - c.w))
            for c in crops[:2900]
            if hasattr(c, "h") and c.h < 180 and c.w < 270
        ]
    )
    assert np.abs(room.mean(axis=0) - 0.5).max() < 0.03


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.array([[5.0, 5.0, 5.0, 9.0]])])
def test_images_without_objects_stay(boxes: Any) -> None:
    assert {type(t) for t in sample_crops(boxes, 20)} == {T.NoOpTransform}


def test_objects_that_no_crop_reaches_leave_the_image_as_it_is() -> None:
    beyond = np.array([[290.0, 190.0, 310.0, 210.0]])  # its centre is the corner of the image
    assert {type(t) for t in sample_crops(beyond, 20)} == {T.NoOpTransform}


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / "a.png")
    pixel = mask_util.encode(np.ones((1, 1), np.uint8, order="F"))
    fixed = {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": str(tmp_path / "a.png"), "height": 1, "width": 1}
    record["annotations"] = [fixed | {"segmentation": pixel}]
    mapper = make_mapper("PhotometricDistort", "ExpandCanvas", "RandomSampleCrop", fixed=(8, 8))
    for seed in range(30):
        np.random.seed(seed)  # noqa: NPY002
        mapped = mapper(record)
        assert mapped["image"].shape == (3, 8, 8) and mapped["image"].isfinite().all()
        assert len(mapped["instances"]) == 1


def test_keypoints_move_along(record: Any) -> None:
    mapper = make_mapper(
        *({"ExpandCanvas": {"prob": 1.0}}, {"RandomSampleCrop": {"unchanged_prob": 0.01}}),
    )
    mapper.use_keypoint = True
    with_points = {**record, "annotations": []}
    for annotation in record["annotations"]:
        x, y, w, h = annotation["bbox"]
        points = [x + w / 2, y + h / 2, 2, x + 1, y + 1, 2]
        with_points["annotations"].append({**annotation, "keypoints": points})
    num_cut = 0
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002
        instances = mapper(with_points)["instances"]
        height, width = instances.image_size
        points = instances.gt_keypoints.tensor  # (M, 2, 3)
        # Centres decide which objects are kept; the corner may be cut off.
        assert (points[:, 0, 2] == 2).all()
        assert (points[:, 0, 0] <= width).all() and (points[:, 0, 1] <= height).all()
        num_cut += int((points[:, 1, 2] == 0).sum())
    assert num_cut


@pytest.mark.parametrize("pixel_range", ["type", "percentiles"])
@pytest.mark.parametrize("num_channels", [1, 3, 6])
def test_the_pipeline_takes_images_of_any_depth(
    num_channels: int, pixel_range: str, tmp_path: Path
) -> None:
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [40.0] * num_channels, [50.0] * num_channels
    cfg.INPUT.PIXEL_RANGE = pixel_range
    cfg.INPUT.AUGMENTATIONS = ["PhotometricDistort", "ExpandCanvas", "RandomSampleCrop"]
    cfg.INPUT.FIXED_SIZE, cfg.INPUT.FIXED_SIZE_ANTIALIAS = (47, 53), False
    mapper = InstanceMapper(cfg, is_train=True)
    shape = (HEIGHT, WIDTH, num_channels)
    values = np.random.default_rng(0).integers(0, 60000, shape, dtype=np.uint16)
    np.save(tmp_path / "a.npy", values)
    record = {"file_name": str(tmp_path / "a.npy"), "height": HEIGHT, "width": WIDTH}
    mask = mask_util.encode(np.asfortranarray(MASKS[0], dtype=np.uint8))
    fixed = {"bbox": [5.0, 8, 40, 32], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record["annotations"] = [fixed | {"segmentation": mask}]
    for seed in range(10):
        np.random.seed(seed)  # noqa: NPY002
        mapped = mapper(record)
        assert mapped["image"].shape == (num_channels, 47, 53)
        assert mapped["image"].dtype == torch.float32 and mapped["image"].isfinite().all()
        assert mapped["image"].abs().max() < 600 and len(mapped["instances"]) == 1
