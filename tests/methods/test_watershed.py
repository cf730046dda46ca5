"""Deep watershed on cases that are counted by hand."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from instancezoo import model_zoo
from instancezoo.errors import ConfigError, ZooError
from instancezoo.modeling.object_maps import IGNORED
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input
from instancezoo.watershed.head import WatershedMaps
from instancezoo.watershed.losses import direction_loss, energy_loss
from instancezoo.watershed.networks import make_bilinear_filters, scale_to_unit
from instancezoo.watershed.semantics import PredictedSemantics
from instancezoo.watershed.targets import measure_depths

TINY, CITYSCAPES = "watershed/watershed_tiny", "watershed/deep_watershed_cityscapes"
EDGES = [0, 1, 2, 3, 5]
BOXES = [[10, 12, 60, 70], [50, 40, 120, 110]]


def _build(*overrides):
    return build_seeded_model(get_tiny_config(TINY, list(overrides)))


def _measure(ids: Tensor, min_area: int = 1):
    return measure_depths(ids, edges=EDGES, min_area=min_area)


def test_targets_of_a_strip() -> None:
    ids = torch.zeros(1, 5, 11, dtype=torch.long)
    ids[0, :, 2:9] = 4
    maps = _measure(ids)
    assert maps.depths[0, 2].tolist() == [0, 0, 1, 2, 3, 4, 3, 2, 1, 0, 0]
    assert maps.levels[0, 2].tolist() == [0, 0, 0, 1, 2, 3, 2, 1, 0, 0, 0]
    assert maps.directions[0, 0, 2].tolist() == [0, 0.5, 1, 1, 1, 0, -1, -1, -1, -0.5, 0]
    assert not maps.directions[0, 1].any()
    torch.testing.assert_close(maps.weights[0, 2, 5], torch.tensor(200 / 35**0.5))
    assert not maps.weights[0, :, :2].any()


def test_small_objects_and_those_without_boundary_are_not_learned() -> None:
    ids = torch.zeros(2, 6, 8, dtype=torch.long)
    ids[0, :2, :2], ids[0, 3:, 3:] = 1, 2
    ids[1] = 1
    maps = _measure(ids, min_area=5)
    assert not maps.weights[0, :2, :2].any() and maps.weights[0, 3:, 3:].all()
    assert not maps.depths[1].any() and not maps.weights[1].any()
    assert maps.depths.isfinite().all()


def test_touching_objects_have_a_boundary_between_them() -> None:
    ids = torch.ones(1, 4, 8, dtype=torch.long)
    ids[..., 4:] = 2
    maps = _measure(ids)
    assert maps.depths[0, 0].tolist() == [4, 3, 2, 1, 1, 2, 3, 4]
    assert (maps.directions[0, 0, 0, 1:3] < 0).all() and (maps.directions[0, 0, 0, 5:7] > 0).all()


def test_mirrored_images_have_mirrored_directions() -> None:
    ids = torch.zeros(1, 20, 24, dtype=torch.long)
    ids[0, 2:15, 3:19], ids[0, 6:18, 12:23] = 1, 2
    maps, mirrored = _measure(ids), _measure(ids.flip(2))
    torch.testing.assert_close(mirrored.directions[:, 0].flip(2), -maps.directions[:, 0])
    torch.testing.assert_close(mirrored.directions[:, 1].flip(2), maps.directions[:, 1])


def test_targets_do_not_depend_on_the_padding() -> None:
    """Objects go on beyond the image's border, padded or not."""
    ids = torch.zeros(2, 24, 32, dtype=torch.long)
    ids[0, 5:20, 4:25], ids[1, 2:9, 3:12], ids[1, 9:17, 8:21] = 3, 1, 2
    sizes = [(20, 25), (17, 21)]
    for image, (height, width) in enumerate(sizes):
        ids[image, height:], ids[image, :, width:] = 0, 0
    found = measure_depths(ids, edges=EDGES, min_area=1, sizes=sizes)
    for image, (height, width) in enumerate(sizes):
        alone = _measure(ids[image : image + 1, :height, :width])
        for name in ("depths", "directions", "levels", "weights"):
            padded = getattr(found, name)[image, ..., :height, :width]
            assert torch.equal(padded, getattr(alone, name)[0]), name


def _make_loss_inputs(channels: int):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, channels, 5, 6, generator=generator, dtype=torch.double)
    is_thing = torch.rand(2, 5, 6, generator=generator) < 0.7
    weights = torch.rand(2, 5, 6, generator=generator, dtype=torch.double)
    return values.requires_grad_(), is_thing, weights * (weights > 0.3)


def test_gradients_of_the_direction_loss() -> None:
    values, is_thing, weights = _make_loss_inputs(2)
    targets = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(
        lambda x: direction_loss(x, targets, is_thing, weights), values, atol=1e-4
    )
    # Neither the ends of the arc cosine nor directions of no length break it.
    for found in (targets, -targets, torch.zeros_like(targets)):
        found = found.clone().requires_grad_()
        loss = direction_loss(found, targets, is_thing, weights)
        (gradient,) = torch.autograd.grad(loss, found)
        assert loss.isfinite() and gradient.isfinite().all()


def test_gradients_of_the_energy_loss() -> None:
    values, is_thing, weights = _make_loss_inputs(5)
    levels = torch.randint(0, 5, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    scale = [3, 2, 1, 1, 1]
    assert torch.autograd.gradcheck(
        lambda x: energy_loss(x, levels, is_thing, weights, scale), values, atol=1e-4
    )


def test_energy_loss_by_its_formula() -> None:
    values, is_thing, weights = _make_loss_inputs(5)
    levels = torch.randint(0, 5, (2, 5, 6), generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([3.0, 2, 1, 1, 1]).double()
    probs = values.softmax(dim=1)
    truth = torch.nn.functional.one_hot(levels, 5).permute(0, 3, 1, 2)
    both = -truth * probs.log() - (1 - truth) * (1 - probs).log()
    counted = (is_thing * weights)[:, None]
    expected = (both * scale[:, None, None] * counted).sum() / (counted.sum() + 1)
    found = energy_loss(values, levels, is_thing, weights, scale.tolist())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("right", [True, False])
def test_a_certain_network_has_a_finite_loss(right: bool) -> None:
    logits = torch.zeros(1, 4, 2, 2)
    logits[:, 1 if right else 2] = 1000
    logits.requires_grad_()
    ones = torch.ones(1, 2, 2)
    levels = torch.ones(1, 2, 2, dtype=torch.long)
    loss = energy_loss(logits, levels, ones.bool(), ones, [1.0] * 4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all()
    assert (loss < 1e-6) == right


@pytest.mark.parametrize("size,stride,padding", [(8, 4, 2), (4, 2, 1)])
def test_filters_enlarge_bilinearly(size: int, stride: int, padding: int) -> None:
    layer = nn.ConvTranspose2d(3, 3, size, stride=stride, padding=padding, bias=False)
    layer.weight.data = make_bilinear_filters(3, size)
    features = torch.randn(1, 3, 6, 7)
    found = layer(features)
    expected = nn.functional.interpolate(features, scale_factor=stride, mode="bilinear")
    inner = slice(stride, -stride)
    torch.testing.assert_close(found[..., inner, inner], expected[..., inner, inner])


def test_directions_are_unit_vectors_of_things() -> None:
    model = _build().eval()
    classes = torch.full((1, 64, 48), 4)
    classes[:, 10:40, 8:30] = 2
    found = model.head.find_directions(torch.randn(1, 3, 64, 48), classes)
    lengths = found.norm(dim=1)
    torch.testing.assert_close(lengths, (classes < 4).float(), rtol=0, atol=1e-5)
    levels = model.head.energy_net(found, classes < 4).argmax(dim=1)
    assert not levels[classes == 4].any()
    assert not scale_to_unit(torch.zeros(1, 2, 3)).any()


@pytest.mark.parametrize(
    "overrides,trained,frozen",
    [
        (["LOSSES", ["direction"]], ["direction_net", "class_channels"], ["energy_net"]),
        (["LOSSES", ["energy"], "GT_DIRECTIONS_ITERS", -1], ["energy_net"], ["direction_net"]),
        (["LOSSES", ["energy"]], ["energy_net", "direction_net"], ["semantics"]),
        (["LOSSES", ["sem_seg"]], ["semantics"], ["direction_net", "energy_net"]),
    ],
)
def test_the_papers_stages(overrides, trained, frozen) -> None:
    keys = overrides[::2]
    named = [
        word for key, value in zip(keys, overrides[1::2], strict=True) for word in (key, value)
    ]
    model = _build(*[f"MODEL.DWT.{word}" if word in keys else word for word in named])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    losses = model.train()([make_input(128, 128, BOXES)])
    assert set(losses) == {f"loss_{name}" for name in model.training_settings.losses}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        part = name.removeprefix("head.").split(".")[0]
        if part in trained:
            assert parameter.grad is not None, name
        if part in frozen or (part == "backbone" and "semantics" in frozen):
            assert parameter.grad is None and not parameter.requires_grad, name
    for name, buffer in model.named_buffers():  # of the norms
        if any(part in name for part in frozen) or (
            name[:8] == "backbone" and "semantics" in frozen
        ):
            assert torch.equal(buffer, before[name]), name


def test_predictions_replace_the_truth_after_their_iteration() -> None:
    model = _build("MODEL.DWT.GT_SEMANTICS_ITERS", 5)
    asked = []
    find = type(model.head.semantics).forward

    def forward(self, *arguments):
        found = find(self, *arguments)
        classes = found.find_classes()
        object.__setattr__(found, "find_classes", lambda: asked.append(1) or classes)
        return found

    model.head.semantics.forward = forward.__get__(model.head.semantics)
    with EventStorage(4):
        model([make_input(96, 96, BOXES)])
        assert not asked
    with EventStorage(5):
        model([make_input(96, 96, BOXES)])
    assert asked


def test_crowds_and_padding_are_ignored() -> None:
    model = _build()
    record = make_input(100, 128, BOXES)
    record["instances"].gt_is_crowd = torch.tensor([False, True])
    images = model.preprocess([record])
    targets = model.assign(None, images, [record["instances"]])
    classes = targets.objects.classes[0]
    assert (classes[100:] == IGNORED).all() and classes[80, 100] == IGNORED
    assert targets.depths.weights[0, 20, 20] > 0 and not targets.depths.weights[0, 80, 100]


def test_the_border_of_a_padded_image_is_no_boundary() -> None:
    model = _build()
    record = make_input(100, 128, [[10, 30, 60, 100]])
    images = model.preprocess([record])
    assert images.tensor.shape[2] > 100
    depths = model.assign(None, images, [record["instances"]]).depths.depths[0, :100]
    assert depths[99, 35] == depths[60, 35] == 25


def test_scores_are_mean_probabilities_of_the_cut_class() -> None:
    model = _build("MODEL.DWT.T_FG", 0.5).eval()
    images = model.preprocess([make_input(64, 64, [])])
    logits = torch.zeros(1, 5, 16, 16)
    logits[:, 4] = 6
    logits[:, :, 4:12, 4:12] = torch.tensor([0.0, 0, 5, 0, 0])[:, None, None]
    semantics = PredictedSemantics(logits, 4, images, 0.5)
    classes = semantics.find_classes()
    assert classes.unique().tolist() == [2, 4]
    levels = torch.nn.functional.one_hot((classes == 2).long() * 3, 16).permute(0, 3, 1, 2).float()
    maps = WatershedMaps(images.tensor, semantics, classes, None, levels)
    segments = model.group(maps, 0, (64, 64))
    found, scores = model.describe(maps, 0, segments)
    labels = segments.draw_labels() > 0
    probs = semantics.find_probs(0)
    assert found.tolist() == [2]
    torch.testing.assert_close(scores[0], probs[2][labels].mean())


@pytest.mark.parametrize(
    "key,value,named",
    [
        ("EDGES", [1, 2], "start with 0"),
        ("EDGES", [0, 2, 2], "ascend"),
        ("LEVEL_WEIGHTS", [1], "16 numbers"),
        ("LOSSES", ["depth"], "sem_seg, direction, energy"),
        ("LOSSES", [], "sem_seg"),
        ("CUT_LEVELS", [1, 2], "1 or 4"),
        ("CUT_LEVELS", [0.5], "whole numbers"),
        ("MIN_SIZES", [-1], "0 and inf"),
        ("SEMANTIC_LABELS", [1, 2, 2, 3], "its own value"),
        ("PAINT_ORDER", [0, 1, 2], "0 to 3"),
        ("CLASS_CODES", [1, 2], "0 or 4"),
        ("BRANCH_STDS", [0.1], "0 or 3"),
        ("SEMANTICS", "files", "branch, maps"),
        ("SEMANTICS", "maps", "INPUT.SEMANTIC_INPUT"),
        ("IN_FEATURES", ["p1"], "p2"),
        ("SEM_CONVS_DIM", 48, "32"),
        ("SEM_STRIDE", 3, "1, 2, 4"),
        ("NORM", "GN", "BN"),
        ("WIDTH", 0, "0.001"),
        ("MASK_RESIZE", "cubic", "bilinear, nearest"),
    ],
)
def test_bad_values_name_their_key(key, value, named) -> None:
    with pytest.raises(ConfigError, match=rf"MODEL\.DWT\.{key}.*{named}"):
        build_model(get_tiny_config(TINY, [f"MODEL.DWT.{key}", value]))


@pytest.fixture(scope="module")
def narrow():
    """The published configuration with few channels."""
    words = ["MODEL.DEVICE", "cpu", "MODEL.DWT.WIDTH", 0.1]
    return build_seeded_model(model_zoo.get_config(CITYSCAPES, words)).eval()


def test_semantic_maps_come_with_the_image(narrow) -> None:
    record = make_input(64, 96, [])
    with pytest.raises(ZooError, match=r"image_0\.png.*INPUT\.SEMANTIC_MAPS"):
        narrow([record])
    with pytest.raises(ZooError, match=r"64 pixels.*96 x 64"):
        narrow([record | {"sem_seg": torch.zeros(64, 64, dtype=torch.long)}])
    labels = torch.full((64, 96), 255)
    labels[:, 40:] = 13  # a car
    images = narrow.preprocess([record])
    classes = narrow.head.semantics([], images, [{"sem_seg": labels}]).find_classes()
    assert classes[0, 0, :40].eq(8).all() and classes[0, 0, 40:].eq(2).all()


def test_the_background_has_a_persons_code_and_no_pixels(narrow) -> None:
    classes = torch.tensor([[[0, 8, 2]]])
    found = narrow.head.class_channels(torch.ones(1, 3, 1, 3), classes)
    assert found[0, :, 0].tolist() == [[1, 0, 1]] * 3 + [[-128, -128, 32]]
