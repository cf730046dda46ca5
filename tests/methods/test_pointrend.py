"""PointRend's mask head: against a slow one that treats regions one by one, and its edges."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from instancezoo.errors import ConfigError, ZooError
from instancezoo.layers.points import make_grid_points
from instancezoo.pointrend.config import MASK_HEAD
from instancezoo.pointrend.mask_head import Regions
from instancezoo.pointrend.settings import TrainingPoints
from instancezoo.pointrend.targets import compute_point_loss, sample_labels
from instancezoo.testing import build_seeded_model, get_tiny_config, keep_everything, make_input

TINY = "pointrend/pointrend_tiny"
NUM_CLASSES, CHANNELS = 4, 6
SHAPES = {
    "p2": ShapeSpec(channels=CHANNELS, stride=4),
    "p3": ShapeSpec(channels=CHANNELS, stride=8),
}
SMALL = [
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.ROI_MASK_HEAD.FC_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 3, "MODEL.POINT_HEAD.FC_DIM", 8),
    *("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 40, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 3),
    *("MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 21),
]


def _build_head(overrides=(), training=False):
    """A small head whose weights are large enough for masks with structure."""
    torch.manual_seed(0)
    head = build_mask_head(get_tiny_config(TINY, [*SMALL, *overrides]), SHAPES).train(training)
    for name, parameter in head.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=(2.0 / parameter[0].numel()) ** 0.5)
    return head


def _make_features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, CHANNELS, 96 // s.stride, 128 // s.stride, generator=generator)
        for name, s in SHAPES.items()
    }


def _make_detections():
    """Three boxes on the first image, one on the second; some reach outside."""
    boxes = [[[8, 9, 70, 60], [-6, 40, 30, 110], [90, 2, 91, 95]], [[20, 20, 120, 80]]]
    classes = [[1, 3, 0], [2]]
    detections = []
    for at, labels in zip(boxes, classes, strict=True):
        found = Instances((90, 120))
        found.pred_boxes = Boxes(torch.tensor(at, dtype=torch.float32))
        found.pred_classes = torch.tensor(labels)
        detections.append(found)
    return detections


def _make_proposals():
    proposals = []
    for found in _make_detections():
        regions = Instances(found.image_size)
        regions.proposal_boxes = found.pred_boxes
        regions.gt_classes = found.pred_classes
        masks = torch.zeros(len(found), *found.image_size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, found.pred_boxes.tensor.int(), strict=True):
            mask[max(y0, 0) : y1 - 4, max(x0, 0) + 3 : x1] = True
        regions.gt_masks = BitMasks(masks)
        proposals.append(regions)
    return proposals


def _sample(feature, points):
    """`grid_sample` of one (1, C, H, W) map at normalised points (P, 2): (C, P)."""
    return F.grid_sample(feature, (points * 2 - 1)[None, None], align_corners=False)[0, :, 0]


class SlowPointRend:
    """The method as the specification writes it: one region, all classes, channels first."""

    def __init__(self, head, features, image, box, point_features=("p2",)):
        self.head, self.box, self.point_features = head, box, point_features
        self.maps = {name: feature[image : image + 1] for name, feature in features.items()}
        side = head.pooler_side
        fine = self.fine(make_grid_points(side), head.coarse_features)
        x = head.coarse_head.reduce_channel_dim_conv(fine.view(1, -1, side, side))
        x = head.coarse_head.reduce_spatial_dim_conv(x).flatten(1)
        for name in head.coarse_head.fc_names:
            x = F.relu(head.coarse_head.get_submodule(name)(x))
        out = head.coarse_head.side
        self.coarse = head.coarse_head.prediction(x).view(1, -1, out, out)

    def fine(self, points, names):
        (x0, y0, x1, y1), rows = self.box.tolist(), []
        image_points = points * torch.tensor([x1 - x0, y1 - y0]) + torch.tensor([x0, y0])
        for name in names:
            feature, stride = self.maps[name], SHAPES[name].stride
            size = torch.tensor([feature.shape[3], feature.shape[2]]) * stride  # of the padded map
            rows.append(_sample(feature, image_points / size))
        return torch.cat(rows)

    def predict(self, points):
        """Logits of all classes at points, (K, P)."""
        coarse = _sample(self.coarse, points)[None]
        x = torch.cat([self.fine(points, self.point_features)[None], coarse], dim=1)
        point_head = self.head.point_head
        for name in point_head.fc_names:
            x = F.relu(point_head.get_submodule(name)(x))
            if point_head.coarse_each_layer:
                x = torch.cat([x, coarse], dim=1)
        return point_head.predictor(x)[0]

    def render(self, label):
        side, steps = 3, 3
        count = self.head.subdivision.num_points
        while 4 * side * side <= count:
            side, steps = 2 * side, steps - 1
        logits = self.predict(make_grid_points(side)).view(-1, side, side)
        label = label if len(logits) > 1 else 0
        for _ in range(steps):
            logits = F.interpolate(logits[None], scale_factor=2, mode="bilinear")[0]
            side *= 2
            cells = (-logits[label].abs()).flatten().topk(count).indices
            points = torch.stack([(cells % side + 0.5) / side, (cells // side + 0.5) / side], 1)
            logits.flatten(1)[:, cells] = self.predict(points)
        return logits[label].sigmoid()


OPTIONS = {
    "published": [],
    "two maps": ["MODEL.POINT_HEAD.IN_FEATURES", ("p2", "p3")],
    "reduced channels": ["MODEL.ROI_MASK_HEAD.IN_FEATURES", ("p2", "p3")],
    "coarse logits once": ["MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", False],
    "class-agnostic": ["MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True],
    "other sizes": ["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 6, "MODEL.POINT_HEAD.NUM_FC", 1]
    + ["MODEL.ROI_MASK_HEAD.NUM_FC", 3, "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 16],
}


@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_inference_equals_the_slow_one(option):
    head, features = _build_head(OPTIONS[option]), _make_features()
    detections = head(features, _make_detections())
    names = dict(zip(OPTIONS[option][::2], OPTIONS[option][1::2], strict=True))
    for image, found in enumerate(detections):
        assert found.pred_masks.shape == (len(found), 1, 24, 24)
        for row in range(len(found)):
            box, label = found.pred_boxes.tensor[row], found.pred_classes[row].item()
            maps = names.get("MODEL.POINT_HEAD.IN_FEATURES", ("p2",))
            expected = SlowPointRend(head, features, image, box, maps).render(label)
            torch.testing.assert_close(found.pred_masks[row, 0], expected, rtol=1e-3, atol=1e-4)
            assert (expected > 0.5).any() and (expected < 0.5).any()


def test_regions_are_rendered_in_parts_of_bounded_size(monkeypatch):
    head, features = _build_head(), _make_features()
    whole = head(features, _make_detections())
    monkeypatch.setattr("instancezoo.pointrend.settings._REGIONS_AT_ONCE", 3)
    parts = head(features, _make_detections())
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.pred_masks, b.pred_masks)


@pytest.mark.parametrize("option", ["published", "class-agnostic", "two maps"])
def test_losses_equal_the_slow_ones(option):
    head, features = _build_head(OPTIONS[option], training=True), _make_features()
    proposals = _make_proposals()
    candidates, fresh = head.training_points.sample(4, torch.device("cpu"))
    with EventStorage():
        losses = head.losses(features, proposals, candidates, fresh)
    names = dict(zip(OPTIONS[option][::2], OPTIONS[option][1::2], strict=True))
    coarse_losses, point_losses, row = [], [], 0
    for image, regions in enumerate(proposals):
        targets = regions.gt_masks.crop_and_resize(regions.proposal_boxes.tensor, 3).float()
        for index in range(len(regions)):
            box, label = regions.proposal_boxes.tensor[index], regions.gt_classes[index].item()
            maps = names.get("MODEL.POINT_HEAD.IN_FEATURES", ("p2",))
            slow = SlowPointRend(head, features, image, box, maps)
            own = slow.coarse[:, label : label + 1]
            coarse_losses.append(F.binary_cross_entropy_with_logits(own[0, 0], targets[index]))
            order = _sample(own, candidates[row])[0].abs().argsort()
            points = torch.cat([candidates[row][order[: int(0.75 * 21)]], fresh[row]])
            assert points.shape == (21, 2)
            mask = regions.gt_masks.tensor[index : index + 1, None].float()
            extent = torch.tensor([mask.shape[3], mask.shape[2]])
            at = (points * (box[2:] - box[:2]) + box[:2]) / extent
            logits = slow.predict(points)
            logits = logits[label if len(logits) > 1 else 0]
            labels = _sample(mask, at)[0]
            point_losses.append(F.binary_cross_entropy_with_logits(logits, labels))
            row += 1
    torch.testing.assert_close(losses["loss_mask"], torch.stack(coarse_losses).mean())
    torch.testing.assert_close(losses["loss_mask_point"], torch.stack(point_losses).mean())


def test_training_samples_twice_and_feeds_both_to_the_losses(monkeypatch):
    head, features = _build_head(training=True), _make_features()
    sampled = []

    def sample(*shape, real=torch.rand, **options):
        sampled.append(real(*shape, **options))
        return sampled[-1]

    monkeypatch.setattr(torch, "rand", sample)
    with EventStorage():
        losses = head(features, _make_proposals())
        assert [tuple(points.shape) for points in sampled] == [(4, 63, 2), (4, 6, 2)]
        again = head.losses(features, _make_proposals(), *sampled)
    assert losses == again


def test_numbers_of_points_are_cut_off_not_rounded():
    cfg = get_tiny_config(TINY)
    assert TrainingPoints.from_config(cfg) == TrainingPoints(588, 147, 49)
    cfg.MODEL.POINT_HEAD.TRAIN_NUM_POINTS = 15
    cfg.MODEL.POINT_HEAD.OVERSAMPLE_RATIO = 2.5
    cfg.MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO = 0.66
    assert TrainingPoints.from_config(cfg) == TrainingPoints(37, 9, 6)


def test_gradient_of_the_point_loss_reaches_the_coarse_head_but_not_through_the_choice():
    head, features = _build_head(training=True), _make_features()
    with EventStorage():
        losses = head(features, _make_proposals())
    losses["loss_mask_point"].backward()
    assert all(p.grad is not None and p.grad.any() for p in head.coarse_head.parameters())
    point_head = head.point_head
    assert all(p.grad is not None and p.grad.any() for p in point_head.parameters())


def test_labels_are_soft_and_a_point_outside_is_background():
    masks = torch.tensor([[[1, 1, 0, 0, 0, 0]] * 4]).bool()
    points = torch.tensor([[[0.5, 0.5], [2.0, 2.0], [1.75, 2.0], [5.0, 1.0], [0.0, 2.0], [-3, 9]]])
    labels = sample_labels([masks], torch.tensor([0]), points)
    assert labels.tolist() == [[1.0, 0.5, 0.75, 0.0, 0.5, 0.0]]


def test_points_labelled_minus_one_weigh_nothing_but_count():
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, -1.0]])
    expected = F.binary_cross_entropy_with_logits(logits[:, :1], labels[:, :1]) / 2
    torch.testing.assert_close(compute_point_loss(logits, labels), expected)


@pytest.mark.parametrize("which", ["some", "all"])
def test_images_without_foreground(which):
    head, features = _build_head(training=True), _make_features()
    empty = Instances((90, 120))  # as the ROI heads leave it: no field gt_masks
    empty.proposal_boxes = Boxes(torch.zeros(0, 4))
    empty.gt_classes = torch.zeros(0, dtype=torch.long)
    proposals = _make_proposals()
    proposals = [empty, proposals[1]] if which == "some" else [empty, empty]
    with EventStorage():
        losses = head(features, proposals)
    assert set(losses) == {"loss_mask", "loss_mask_point"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())
    assert all((loss == 0) == (which == "all") for loss in losses.values())


@torch.no_grad()
def test_no_detection_leaves_after_the_first_grid():
    head, features = _build_head(), _make_features()
    detections = [found[:0] for found in _make_detections()]
    assert [x.pred_masks.shape for x in head(features, detections)] == [(0, 1, 6, 6)] * 2
    some = [_make_detections()[0][:0], _make_detections()[1]]
    assert [x.pred_masks.shape for x in head(features, some)] == [(0, 1, 24, 24), (1, 1, 24, 24)]


@torch.no_grad()
def test_boxes_without_extent_give_finite_masks():
    head, features = _build_head(), _make_features()
    detections = _make_detections()
    detections[0].pred_boxes = Boxes(torch.tensor([[5.0, 5, 5, 5], [0, 9, 60, 9], [7, 7, 7, 50]]))
    for found in head(features, detections):
        assert torch.isfinite(found.pred_masks).all()


def test_without_point_head_the_coarse_mask_is_the_result():
    head = _build_head(["MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False])
    features = _make_features()
    found = head(features, _make_detections())
    assert found[0].pred_masks.shape == (3, 1, 3, 3)
    slow = SlowPointRend(head, features, 1, found[1].pred_boxes.tensor[0])
    torch.testing.assert_close(found[1].pred_masks[0, 0], slow.coarse[0, 2].sigmoid())
    empty = head(features, [x[:0] for x in _make_detections()])
    assert empty[0].pred_masks.shape == (0, 1, 3, 3)
    with EventStorage():
        assert set(head.train()(features, _make_proposals())) == {"loss_mask"}


def test_half_precision_leaves_points_and_results_in_fp32():
    features = _make_features()
    expected = _build_head()(features, _make_detections())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = _build_head()
        half = {name: feature.bfloat16() for name, feature in features.items()}
        found = head(half, _make_detections())
        with EventStorage():
            losses = head.train()(half, _make_proposals())
    for a, b in zip(expected, found, strict=True):
        assert b.pred_masks.dtype == torch.float32
        assert ((a.pred_masks > 0.5) == (b.pred_masks > 0.5)).float().mean() > 0.9
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_polygons_are_refused_with_the_key():
    proposals = _make_proposals()
    square = [[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]]
    proposals[0].gt_masks = PolygonMasks([[torch.tensor(square[0]).numpy()]] * 3)
    with EventStorage(), pytest.raises(ZooError, match=r"INPUT\.MASK_FORMAT.*bitmask"):
        _build_head(training=True)(_make_features(), proposals)


@pytest.mark.parametrize(
    "overrides,named",
    [
        (["MODEL.POINT_HEAD.NUM_CLASSES", 7], r"POINT_HEAD\.NUM_CLASSES.*\b7\b"),
        (["MODEL.ROI_MASK_HEAD.IN_FEATURES", ("p9",)], r"ROI_MASK_HEAD\.IN_FEATURES .*p9"),
        (["MODEL.POINT_HEAD.IN_FEATURES", ("p9",)], r"POINT_HEAD\.IN_FEATURES .*p9"),
        (["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True], r"POINT_HEAD\.CLS_AGNOSTIC_MASK"),
        (["MODEL.POINT_HEAD.OVERSAMPLE_RATIO", 0], "OVERSAMPLE_RATIO"),
        (["MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO", 1.5], "IMPORTANCE_SAMPLE_RATIO"),
        (["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"], "POOLER_TYPE"),
    ],
)
def test_settings_that_cannot_work_name_their_key(overrides, named):
    with pytest.raises(ConfigError, match=named):
        build_seeded_model(get_tiny_config(TINY, overrides))


def test_masks_are_trained_on_predicted_boxes():
    cfg = get_tiny_config(TINY)
    assert cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
    model = build_seeded_model(cfg)
    seen = []
    head, forward = model.roi_heads.mask_head, model.roi_heads.mask_head.forward
    torch.nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.01)

    def record(features, instances):
        seen.extend(instances)
        return forward(features, instances)

    head.forward = record
    with EventStorage():
        model([make_input(96, 128, [[10, 12, 40, 50]])])
    boxes, truth = seen[0].proposal_boxes.tensor, torch.tensor([10.0, 12.0, 40.0, 50.0])
    assert len(boxes) and not (boxes == truth).all(dim=1).any()  # ground truth joins the proposals
    assert not boxes.requires_grad


@pytest.mark.parametrize("name", [TINY, "pointrend/cascade_pointrend_tiny"])
@torch.no_grad()
def test_stock_model_gives_the_same_masks(name):
    image = make_input(100, 128, [], seed=3)
    image.update(height=75, width=96)
    results = []
    for architecture in ("GeneralizedRCNN", "GeneralizedRCNNCompactMasks"):
        cfg = keep_everything(get_tiny_config(name, ["MODEL.META_ARCHITECTURE", architecture]))
        cfg.TEST.DETECTIONS_PER_IMAGE = 10
        model = build_seeded_model(cfg).eval()
        model.roi_heads.mask_head.point_head.predictor.weight.normal_()  # not about 0 everywhere
        results.append(model([image])[0]["instances"])
    assert len(results[0]) > 0 and results[0].pred_masks.any()
    assert torch.equal(results[0].pred_masks, results[1].pred_masks)


def test_regions_are_collected_in_the_order_of_images():
    regions = Regions.collect(_make_detections(), training=False)
    assert regions.owners.tolist() == [0, 0, 0, 1]
    assert regions.classes.tolist() == [1, 3, 0, 2]
    assert len(regions[torch.tensor([3])]) == 1
    assert type(_build_head()).__name__ == MASK_HEAD
