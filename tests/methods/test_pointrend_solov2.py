"""SOLOv2 refined at points: what its point head sees, in training and in inference."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from instancezoo.checkpoint import ZooCheckpointer
from instancezoo.errors import ConfigError
from instancezoo.layers.dynamic_conv import dynamic_conv
from instancezoo.layers.points import PointSampler, sample_masks
from instancezoo.modeling.masks import BoxMasks, ImageMasks, remove_padding
from instancezoo.pointrend.solov2 import apply_kernels
from instancezoo.pointrend.targets import sample_labels
from instancezoo.solov2 import SOLOv2
from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything, make_input

TINY = "pointrend/solov2_pointrend_tiny"
BOXES = [[10, 12, 40, 50], [50, 20, 110, 90], [60, 30, 100, 80]]


def _build(overrides=(), seed=0):
    return build_seeded_model(keep_everything(get_tiny_config(TINY, list(overrides))), seed)


def _run_head(model, batch):
    images = model.preprocess(batch)
    features = model.backbone(images.tensor)
    return images, model.head([features[name] for name in model.in_features])


def _copy_coarse_logit(model):
    """Make the point head give back the coarse logit, whatever the features are."""
    point_head = model.head.point_head

    def forward(fine, coarse, classes):
        assert fine.shape[:2] == coarse.shape[:2] and coarse.shape[2] == 1
        return coarse[..., 0]

    point_head.forward = forward


def test_kernel_at_a_point_equals_the_interpolated_mask():
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 8, 9, 13, generator=generator)
    kernels = torch.randn(4, 8, generator=generator)
    owners = torch.tensor([0, 1, 1, 0])
    points = torch.rand(4, 50, 2, generator=generator) * torch.tensor([60.0, 44.0]) - 4
    found = apply_kernels(PointSampler([feature], [4])(owners, points), kernels)
    maps = torch.cat([dynamic_conv(feature[o], kernels[i : i + 1]) for i, o in enumerate(owners)])
    expected = sample_masks(maps, torch.arange(4), points / 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_labels_are_read_from_the_own_object_of_the_own_image():
    sizes, counts = [(8, 10), (6, 4), (8, 8)], [2, 0, 1]
    truth = []
    for image, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        objects = Instances(size)
        masks = torch.zeros(count, *size, dtype=torch.bool)
        for index, mask in enumerate(masks):
            mask[image + index, 2] = True
        objects.gt_masks = BitMasks(masks)
        truth.append(objects)
    # rows come in any order, and several may be of one object
    instance = torch.tensor([2, 0, 1, 0])
    points = torch.tensor([[2.5, 0.5], [2.5, 1.5], [2.5, 2.5], [3.0, 1.5]]).expand(4, -1, -1)
    labels = sample_labels([objects.gt_masks.tensor for objects in truth], instance, points)
    assert labels.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0.5], [1, 0, 0, 0]]


def _compute_point_loss(model, batch, images, outputs):
    truth = [record["instances"] for record in batch]
    return model.point_loss(outputs, model.assign(outputs, images, truth))


@pytest.mark.parametrize("boxes", [BOXES, []], ids=["objects", "none"])
def test_point_loss_reaches_its_head_and_the_kernels(boxes):
    model = _build()
    torch.nn.init.normal_(model.head.point_head.predictor.weight)
    batch = [make_input(96, 128, boxes), make_input(128, 100, [], seed=1)]
    images, outputs = _run_head(model, batch)
    loss = _compute_point_loss(model, batch, images, outputs)
    loss.backward()
    assert torch.isfinite(loss) and (loss > 0) == bool(boxes)
    gradients = {n: p.grad for n, p in model.head.named_parameters()}
    assert all(gradients[n] is not None for n in gradients if n.startswith("point_head"))
    if boxes:
        assert gradients["kernel_predict.weight"].any()
        assert gradients["mask_branch.predict.weight"].any()
        assert model.backbone.fpn_output2.weight.grad.any()  # the point head's fine features


def test_no_more_rows_than_asked_for_are_trained_on():
    model = _build()
    model.max_rows = 3
    seen, predict = [], model.head.predict_points

    def record(fine, mask_feature, coarse):
        seen.append(coarse.shape)
        return predict(fine, mask_feature, coarse)

    model.head.predict_points = record
    batch = [make_input(96, 128, BOXES)]
    images, outputs = _run_head(model, batch)
    _compute_point_loss(model, batch, images, outputs)
    assert seen == [(3, 196)]


@torch.no_grad()
@pytest.mark.parametrize("each_layer", [True, False])
def test_an_untrained_point_head_gives_back_the_coarse_logits(each_layer):
    head = _build(["MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", each_layer]).head
    generator = torch.Generator().manual_seed(0)
    coarse = 20 * torch.rand(3, 50, generator=generator) - 10
    features = torch.randn(3, 50, head.point_head.fc1.in_channels - 1, generator=generator)
    logits = head.predict_points(features[..., :9], features[..., 9:], coarse)
    difference = (logits - coarse).abs().max()
    assert (difference < 0.1) == each_layer


@torch.no_grad()
def test_a_point_head_that_copies_leaves_the_masks_almost_as_they_were(monkeypatch):
    model = _build().eval()
    image = make_input(96, 128, [])
    image.update(height=144, width=192)
    images, outputs = _run_head(model, [image])
    _copy_coarse_logit(model)
    # smooth blobs, so that 224 cells on a side and 4 pixels a cell can mean the same
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    centers = torch.tensor([[8.0, 9.0], [20.0, 12.0], [2.0, 3.0]])
    radius = torch.tensor([5.0, 7.0, 4.0])
    distance = ((x - centers[:, :1, None]) ** 2 + (y - centers[:, 1:, None]) ** 2).sqrt()
    probs = (radius[:, None, None] - distance).sigmoid()
    model.decode_settings = type(model.decode_settings)()  # published thresholds
    found = Instances((96, 128), scores=torch.ones(3), pred_classes=torch.zeros(3).long())
    found.pred_masks = ImageMasks(probs, remove_padding((96, 128), (96, 128)))
    expected = found.pred_masks.bitmasks(144, 192)

    monkeypatch.setattr(SOLOv2, "decode", lambda self, outputs, images: [found])
    (refined,) = model.decode(outputs, images)
    assert isinstance(refined.pred_masks, BoxMasks)
    assert refined.pred_masks.scores.shape == (3, 224, 224)
    masks = model.postprocess(refined, 144, 192).pred_masks
    overlap = (masks & expected).sum((1, 2)) / (masks | expected).sum((1, 2))
    assert (overlap > 0.97).all(), overlap


@torch.no_grad()
def test_boxes_follow_the_image_to_its_own_size():
    model = _build().eval()
    detections = Instances((64, 80), scores=torch.ones(1), pred_classes=torch.zeros(1).long())
    box = torch.tensor([[20.0, 8.0, 40.0, 24.0]])
    detections.pred_masks = BoxMasks(torch.ones(1, 28, 28), box)
    found = model.postprocess(detections, 128, 240)
    assert isinstance(found.pred_boxes, Boxes)
    assert found.pred_boxes.tensor.tolist() == [[60.0, 16.0, 120.0, 48.0]]
    assert torch.equal(detections.pred_masks.boxes, box)  # the input is left as it was


def test_weights_of_solov2_start_it(tmp_path):
    source = build_seeded_model(get_tiny_config("solov2/solov2_tiny"), seed=5)
    ZooCheckpointer(source, str(tmp_path)).save("solov2")
    model = _build()
    ZooCheckpointer(model, allow_partial=True).load(str(tmp_path / "solov2.pth"))
    loaded, state = model.state_dict(), source.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert {name.split(".")[1] for name in loaded if name not in state} == {"point_head"}


def test_a_map_that_the_head_does_not_get_is_refused():
    with pytest.raises(ConfigError, match=r"POINT_HEAD\.IN_FEATURES .*p7"):
        _build(["MODEL.POINT_HEAD.IN_FEATURES", ("p7",)])
