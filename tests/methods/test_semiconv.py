"""Both uses of semi-convolutional embeddings on cases that are counted by hand."""

from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from instancezoo import model_zoo
from instancezoo.errors import ConfigError
from instancezoo.layers.semiconv import add_coordinates, kernel_loss
from instancezoo.modeling.object_maps import IGNORED, ObjectMaps
from instancezoo.modeling.objects import join_objects
from instancezoo.semiconv.config import check_roi_config
from instancezoo.semiconv.head import Coordinates, PixelMaps, SemiConvHead
from instancezoo.semiconv.losses import sample_kernel_cells, similarity_loss
from instancezoo.semiconv.targets import list_level_cells
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input

SEGMENTOR, RCNN = "semiconv/semiconv_tiny", "semiconv/semiconv_mask_rcnn_tiny"


def _build(*overrides):
    return build_seeded_model(get_tiny_config(SEGMENTOR, list(overrides))).eval()


def _make_maps(objects, size=(40, 60), num_classes=4, embed_dim=8):
    """Maps of a perfect network: every object's pixels have the colour of its centre."""
    logits = torch.zeros(1, num_classes + 1, *size)
    logits[:, -1] = 8
    coordinates = add_coordinates(torch.zeros(1, embed_dim, *size), stride=4)
    embeddings = coordinates.clone()
    for label, (y0, x0, y1, x1) in objects:
        logits[0, :, y0:y1, x0:x1] = 0
        logits[0, label, y0:y1, x0:x1] = 8
        part = coordinates[0, :, y0:y1, x0:x1]
        embeddings[0, :, y0:y1, x0:x1] = part.mean(dim=(1, 2), keepdim=True)
    return PixelMaps(logits, embeddings, torch.tensor(-1.5))


@pytest.mark.parametrize("grouping", ["greedy", "kmeans", "votes"])
def test_objects_side_by_side_are_told_apart(grouping):
    objects = [(2, (4, 4, 16, 16)), (2, (4, 16, 16, 28)), (1, (16, 4, 28, 16))]
    maps = _make_maps(objects)
    model = _build("MODEL.SEMICONV.GROUPING", grouping)
    segments = model.group(maps, 0, (40, 60))
    assert len(segments) == 3
    labels = segments.draw_labels()
    for _, (y0, x0, y1, x1) in objects:
        inside = labels[y0:y1, x0:x1].unique()
        assert len(inside) == 1 and inside > 0 and (labels == inside).sum() == 144
    classes, scores = model.describe(maps, 0, segments)
    assert sorted(classes.tolist()) == [1, 2, 2] and (scores > 0.95).all()


def test_parts_of_one_object_are_one_segment():
    maps = _make_maps([(0, (4, 4, 20, 40))])
    maps.cls_logits[0, :, :, 20:24] = torch.tensor([0.0, 0, 0, 0, 9])[:, None, None]  # an occluder
    segments = _build().group(maps, 0, (40, 60))
    assert len(segments) == 1 and len(segments.cells) == 16 * 32


def test_no_segment_has_cells_of_the_padding():
    maps = _make_maps([(0, (10, 10, 30, 50))])
    segments = _build().group(maps, 0, (20, 60))
    assert segments.grid == (20, 60) and len(segments.cells) == 10 * 40


def test_more_than_a_hundred_objects_are_found_if_asked_for():
    places = [(3 + 4 * row, 3 + 4 * column) for row in range(12) for column in range(15)]
    maps = _make_maps([(0, (y, x, y + 4, x + 4)) for y, x in places], size=(60, 72))
    maps = replace(maps, log_sigma=torch.tensor(-3.0))
    for limit, expected in ((1000, 180), (100, 100), (7, 7)):
        model = _build("MODEL.SEMICONV.MAX_INSTANCES", limit)
        assert len(model.group(maps, 0, (60, 72))) == expected


@pytest.mark.parametrize("mode,expected", [("image", 2), ("index", 2), ("none", 1)])
def test_only_coordinates_tell_identical_objects_apart(mode, expected):
    """Pixels of copies have the same convolutional response (the paper's motivation)."""
    keys = {"COORD_MODE": mode, "T_FG": 0.0, "T_SEED": 0.0, "SIGMA_INIT": 1.0, "MIN_SIZE": 1}
    if mode == "index":  # its unit is a cell
        keys["SIGMA_INIT"] = 16.0
    model = _build(*(w for key, v in keys.items() for w in (f"MODEL.SEMICONV.{key}", v)))
    tile = make_input(128, 128, [], seed=5)["image"]
    maps = model._run([{"image": tile.repeat(1, 1, 4)}])[1]
    # Part of the foreground in two of four copies, away from the border.
    inner = torch.full_like(maps.cls_logits, -50.0)
    inner[:, -1] = 50
    for column in (48, 80):  # the same cells of two copies
        inner[0, :, 14:18, column : column + 4] = 0
    segments = model.group(replace(maps, cls_logits=inner), 0, (32, 128))
    apart = segments.owners.unique()
    first = segments.draw_labels()[16, 49]
    other = segments.draw_labels()[16, 81]
    assert len({int(first), int(other)} - {0}) == expected and len(apart) >= expected


def _make_targets():
    ids = torch.zeros(2, 8, 8, dtype=torch.long)
    ids[0, 2:4, 2:6] = 1
    ids[0, 7, 7] = 3  # the second has no cell
    ids[1, :, :4] = 1
    classes = torch.zeros_like(ids)
    classes[1, 6:] = IGNORED
    return ObjectMaps(ids, classes, (3, 1))


def test_cells_of_the_kernel_loss():
    targets = _make_targets()
    seeds = set()
    for _ in range(1000):
        chosen = sample_kernel_cells(targets)
        assert len(chosen.seeds) == 3
        seeds.update(chosen.seeds.tolist())
        # the box of 2 x 4 is enlarged by 1 and 2 cells, that of one cell by one, within the map
        areas = chosen.owners.bincount().tolist()
        assert areas == [4 * 8, 2 * 2, 6 * 6]
        assert chosen.owners[chosen.inside].bincount().tolist() == [8, 1, 24]
    every = targets.ids.flatten().nonzero().flatten().tolist()
    assert seeds == set(every)


def test_similarity_loss_equals_a_loop():
    torch.manual_seed(1)
    embeddings, log_sigma = torch.randn(2, 5, 8, 8), torch.tensor(0.3)
    chosen = sample_kernel_cells(_make_targets())
    flat = embeddings.permute(0, 2, 3, 1).flatten(0, 2)
    expected = 0.0
    for owner in range(3):
        mine = (chosen.owners == owner).nonzero().flatten()
        distances = (flat[chosen.cells[mine]] - flat[chosen.seeds[owner]]).norm(dim=1)
        expected += kernel_loss(distances / log_sigma.exp(), chosen.inside[mine]).mean() / 3
    found = similarity_loss(embeddings, log_sigma, chosen, "laplacian")
    torch.testing.assert_close(found, expected)


def test_the_push_loss_is_optional():
    batch = [make_input(128, 128, [[8, 8, 60, 60], [64, 64, 120, 120]])]
    plain = _build().train()
    far = ["MODEL.SEMICONV.PUSH_MARGIN", 10.0]  # the objects are five units apart
    pushed = _build("MODEL.SEMICONV.PUSH_LOSS_WEIGHT", 0.5, *far).train()
    with EventStorage():
        assert "loss_push" not in plain(batch)
        assert pushed(batch)["loss_push"] > 0


def test_losses_ignore_an_image_of_crowds_only():
    image = make_input(64, 64, [[0, 0, 64, 64]])
    image["instances"].gt_is_crowd = torch.tensor([True])
    with EventStorage():
        losses = _build().train()([image])
    assert all(loss == 0 for loss in losses.values())


def _make_level_objects(size, boxes):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
        mask[(y0 + y1) // 2, x0] = False
    objects = Instances(size, gt_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)))
    objects.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    objects.gt_masks = BitMasks(masks)
    return objects


def test_cells_of_each_level():
    batch = [
        _make_level_objects((30, 45), [[3, 2, 40, 30], [10, 10, 11, 11]]),
        _make_level_objects((32, 40), []),
        _make_level_objects((32, 48), [[0, 0, 48, 32]]),
    ]
    objects = join_objects(batch)
    levels, strides, sizes = torch.tensor([0, 1, 1]), [4, 8], [(8, 12), (4, 6)]
    owners, images, cells = list_level_cells(objects, levels, strides, sizes)
    expected = []
    masks = [(i, mask) for i, found in enumerate(batch) for mask in found.gt_masks.tensor]
    for owner, (image, mask) in enumerate(masks):
        level = levels[owner]
        stride, start = strides[level], 96 * int(level)
        for y in range(sizes[level][0]):
            for x in range(sizes[level][1]):
                py, px = int((y + 0.5) * stride), int((x + 0.5) * stride)
                if py < mask.shape[0] and px < mask.shape[1] and mask[py, px]:
                    expected.append((owner, image, start + y * sizes[level][1] + x))
    found = zip(owners.tolist(), images.tolist(), cells.tolist(), strict=True)
    assert sorted(found) == sorted(expected)
    none = list_level_cells(join_objects(batch[1:2]), levels[:0], strides, sizes)
    assert [len(part) for part in none] == [0, 0, 0]


def test_a_tenth_of_the_gradient_reaches_the_pyramid():
    def gradient(scale):
        torch.manual_seed(0)
        head = SemiConvHead(
            in_channels=4,
            hidden_channels=8,
            embed_dim=3,
            strides=[4],
            coordinates=Coordinates(mode="image", unit=64.0),
            grad_scale=scale,
        )
        features = torch.ones(1, 4, 5, 5, requires_grad=True)
        head([features])[0].sum().backward()
        return features.grad, head.hidden.weight.grad

    whole, tenth = gradient(1.0), gradient(0.1)
    torch.testing.assert_close(tenth[0], 0.1 * whole[0])
    torch.testing.assert_close(tenth[1], whole[1])


@pytest.mark.parametrize("seed", ["soft", "hard"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_the_mask_head_lowers_the_plain_heads_masks(seed, agnostic):
    keys = ["MODEL.SEMICONV.SEED", seed, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic]
    model = build_seeded_model(get_tiny_config(RCNN, keys)).eval()
    plain = build_seeded_model(get_tiny_config("mask_rcnn/mask_rcnn_tiny", keys[2:])).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    boxes = Boxes(torch.tensor([[10.0, 10, 90, 100], [5, 5, 20, 20]]))
    given = Instances((128, 128), pred_boxes=boxes, pred_classes=torch.tensor([1, 3]))
    batch = [make_input(128, 128, [])]
    with torch.no_grad():
        found, reference = (
            m.inference(batch, [given[torch.arange(2)]], do_postprocess=False)[0].pred_masks
            for m in (model, plain)
        )
    assert found.shape == (2, 1, 28, 28)
    assert (found <= reference).all() and (found < reference).any()


def test_polygons_as_ground_truth_train():
    from detectron2.structures import PolygonMasks

    image = make_input(128, 128, [[10, 10, 90, 100]])
    image["instances"].gt_masks = PolygonMasks(
        [[torch.tensor([10.0, 10, 90, 10, 90, 100]).numpy()]]
    )
    model = build_seeded_model(get_tiny_config(RCNN))
    with EventStorage():
        losses = model([image])
    assert losses["loss_embed"] > 0 and all(loss.isfinite() for loss in losses.values())


def test_boxes_only():
    model = build_seeded_model(get_tiny_config(RCNN, ["MODEL.MASK_ON", False]))
    with EventStorage():
        assert "loss_embed" not in model([make_input(64, 64, [[8, 8, 60, 60]])])


@pytest.mark.parametrize(
    "name,key,value,named",
    [
        (SEGMENTOR, "SEMICONV.COORD_MODE", "pixel", "image, index, none"),
        (SEGMENTOR, "SEMICONV.GROUPING", "hdbscan", "greedy, kmeans, votes"),
        (SEGMENTOR, "SEMICONV.KERNEL", "linear", "laplacian, gaussian"),
        (SEGMENTOR, "SEMICONV.STRIDE", 8, r"STRIDE.*1, 2, 4"),
        (SEGMENTOR, "SEMICONV.IN_FEATURES", ["p9"], "IN_FEATURES"),
        (SEGMENTOR, "SEMICONV.IN_FEATURES", [], "one map or more"),
        (SEGMENTOR, "SEMICONV.EMBED_DIM", 1, "EMBED_DIM"),
        (SEGMENTOR, "SEMICONV.T_MEMBER", 0.0, "T_MEMBER"),
        (SEGMENTOR, "SEMICONV.VOTE_WINDOW", 4, "odd"),
        (SEGMENTOR, "SEMICONV.CONVS_DIM", 60, "multiple of 32"),
        (RCNN, "SEMICONV.SEED", "mean", "soft, hard"),
        (RCNN, "SEMICONV.IN_FEATURES", ["p2", "p4"], "twice"),
        (RCNN, "ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "SemiConvMaskHead"),
        (RCNN, "ROI_MASK_HEAD.POOLER_TYPE", "", "POOLER_TYPE"),
    ],
)
def test_bad_values_are_named(name, key, value, named):
    with pytest.raises(ConfigError, match=named):
        build_seeded_model(get_tiny_config(name, [f"MODEL.{key}", value]))


def test_maps_of_other_channels_are_refused_by_the_shared_network():
    cfg = get_tiny_config(RCNN)
    shapes = {f"p{i}": ShapeSpec(channels=64 * i, stride=2**i) for i in range(2, 6)}
    with pytest.raises(ConfigError, match=r"IN_FEATURES.*128, 192, 256, 320"):
        check_roi_config(cfg, shapes)


@pytest.mark.parametrize("features", [["res2"], ["res2", "res3", "res4", "res5"], ["res3", "res4"]])
def test_a_backbone_without_a_pyramid(features):
    keys = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", features]
    model = build_seeded_model(
        get_tiny_config(SEGMENTOR, [*keys, "MODEL.SEMICONV.IN_FEATURES", features])
    )
    batch = [make_input(100, 75, [[8, 8, 60, 60]]), make_input(37, 50, [[1, 1, 30, 30]])]
    with EventStorage():
        losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        results = model.eval()(batch)
    assert [x["instances"].image_size for x in results] == [(100, 75), (37, 50)]


def test_a_u_net_infers_at_the_images_resolution():
    small = ["MODEL.UNET.WIDTHS", [8, 16, 32], "MODEL.DEVICE", "cpu"]
    model = build_seeded_model(model_zoo.get_config("semiconv/semiconv_unet", small))
    image = make_input(48, 40, [[4, 4, 30, 30]])
    image["instances"].gt_classes.zero_()
    with EventStorage():
        losses = model([image])
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        maps = model.eval()._run([image])[1]
    assert maps.embeddings.shape[2:] == (48, 40) and model.stride == 1
