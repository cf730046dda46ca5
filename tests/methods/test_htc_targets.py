"""Which boxes each stage of HTC learns from, on hand-made cases."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from instancezoo.htc.roi_heads import merge_scores
from instancezoo.htc.targets import Sampling, label_boxes, sample_boxes, select_positives
from instancezoo.modeling.matching import build_roi_matcher
from instancezoo.testing import build_seeded_model, get_tiny_config

SIZE = (100, 120)
OBJECTS = torch.tensor([[10.0, 10, 50, 50], [60, 20, 100, 80]])
BACKGROUND = 4


def _make_objects(boxes=OBJECTS, classes=(2, 0)):
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for index in range(len(boxes)):
        masks[index, index] = True  # to be told apart
    return Instances(
        SIZE,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.tensor(classes, dtype=torch.long)[: len(boxes)],
        gt_masks=BitMasks(masks),
    )


def _label(boxes, objects=None, threshold=0.5, low_quality=False, add_objects=True):
    objects = _make_objects() if objects is None else objects
    matcher = build_roi_matcher(threshold, low_quality)
    return label_boxes(boxes, objects, matcher, BACKGROUND, add_objects=add_objects)


def test_objects_come_first_and_are_their_own_matches():
    boxes = torch.tensor([[12.0, 12, 52, 52], [0, 60, 20, 90]])
    labelled = _label(boxes)
    assert torch.equal(labelled.proposal_boxes.tensor, torch.cat([OBJECTS, boxes]))
    assert labelled.is_added.tolist() == [True, True, False, False]
    assert labelled.matched.tolist()[:3] == [0, 1, 0]
    assert labelled.gt_classes.tolist() == [2, 0, 2, BACKGROUND]
    assert torch.equal(labelled.gt_boxes.tensor[:3], OBJECTS[[0, 1, 0]])
    # Two objects in one place: each is its own match, though the overlap is equal.
    twins = _make_objects(OBJECTS[[0, 0]], (1, 3))
    assert _label(boxes, twins).gt_classes.tolist()[:2] == [1, 3]


def test_the_threshold_includes_its_value():
    half = torch.tensor([[10.0, 10, 50, 30]])  # half of the first object
    assert _label(half, add_objects=False).gt_classes.tolist() == [2]
    assert _label(half, threshold=0.51, add_objects=False).gt_classes.tolist() == [BACKGROUND]


def test_without_objects_or_boxes():
    nothing = _make_objects(torch.zeros(0, 4), ())
    labelled = _label(OBJECTS, nothing)
    assert labelled.gt_classes.tolist() == [BACKGROUND] * 2 and not labelled.is_added.any()
    assert len(select_positives(labelled, nothing, BACKGROUND)) == 0
    assert len(_label(torch.zeros(0, 4), nothing)) == 0
    only_objects = _label(torch.zeros(0, 4))
    assert only_objects.gt_classes.tolist() == [2, 0]


def test_an_object_without_area_is_not_added():
    flat = torch.tensor([[10.0, 10, 10, 50], [60, 20, 100, 80]])
    labelled = _label(torch.tensor([[0.0, 0, 5, 5]]), _make_objects(flat))
    assert labelled.matched.tolist() == [1, 0]
    assert labelled.gt_classes.tolist() == [0, BACKGROUND]


def test_sampling_keeps_all_that_fit_and_limits_the_positive_ones():
    boxes = torch.cat([OBJECTS.repeat(10, 1), torch.tensor([[0.0, 0, 5, 5]]).repeat(30, 1)])
    sampled = sample_boxes(_label(boxes), Sampling(BACKGROUND, 16, 0.25))
    assert len(sampled) == 16
    assert (sampled.gt_classes[:4] < BACKGROUND).all()
    assert (sampled.gt_classes[4:] == BACKGROUND).all()
    everything = sample_boxes(_label(boxes), Sampling(BACKGROUND, 512, 0.5))
    assert len(everything) == len(boxes) + len(OBJECTS)


def test_positives_have_the_masks_of_their_objects():
    boxes = torch.tensor([[60.0, 20, 100, 70], [0, 60, 20, 90], [10, 10, 50, 45]])
    positives = select_positives(_label(boxes, add_objects=False), _make_objects(), BACKGROUND)
    assert positives.matched.tolist() == [1, 0]
    assert positives.gt_masks.tensor.any(dim=2).float().argmax(dim=1).tolist() == [1, 0]


def _build_heads(*overrides):
    overrides = ["MODEL.HTC.SEMANTIC_ON", False, *overrides]
    return build_seeded_model(get_tiny_config("htc/htc_tiny", list(overrides))).roi_heads.train()


def test_added_objects_do_not_go_to_the_next_stage():
    heads = _build_heads()
    proposals = torch.tensor([[12.0, 12, 52, 52], [0, 60, 20, 90], [-5, -5, 130, 110]])
    (samples,) = heads.sample([proposals], [_make_objects()], 0, is_first=True)
    assert int(samples.is_added.sum()) == 2 and len(samples) == 5
    # Deltas of zero decode to the boxes themselves, which are clipped.
    predictions = torch.zeros(5, BACKGROUND + 1), torch.zeros(5, 4)
    (refined,) = heads.refine(predictions, [samples], 0)
    expected = proposals.clone()
    expected[2] = torch.tensor([0.0, 0, SIZE[1], SIZE[0]])
    assert sorted(refined.tolist()) == sorted(expected.tolist())


def test_a_box_that_shrank_to_nothing_stays():
    heads = _build_heads()
    (samples,) = heads.sample(
        [torch.tensor([[110.0, 10, 115, 20]])], [_make_objects()], 0, is_first=True
    )
    deltas = torch.zeros(len(samples), 4)
    deltas[~samples.is_added, 0] = 100.0  # far beyond the right border
    (refined,) = heads.refine((torch.zeros(len(samples), 5), deltas), [samples], 0)
    assert refined.tolist() == [[SIZE[1], 10, SIZE[1], 20]]
    (again,) = heads.sample([refined], [_make_objects()], 1, is_first=False)
    assert sorted(again.gt_classes[again.is_added].tolist()) == [0, 2]
    assert again.gt_classes[~again.is_added].tolist() == [BACKGROUND]


@pytest.mark.parametrize("added,resampled", [(True, True), (False, True), (True, False)])
def test_switches_of_later_stages(added, resampled):
    heads = _build_heads(
        *("MODEL.HTC.ADD_GT_EVERY_STAGE", added, "MODEL.HTC.RESAMPLE_EVERY_STAGE", resampled),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 6),
    )
    boxes = torch.tensor([[0.0, 60, 20, 90]]).repeat(20, 1)
    (first,) = heads.sample([boxes], [_make_objects()], 0, is_first=True)
    assert len(first) == 6 and first.is_added.any()
    (later,) = heads.sample([boxes], [_make_objects()], 1, is_first=False)
    assert later.is_added.any() == added
    assert len(later) == (6 if resampled else 20 + 2 * added)


def test_each_stage_has_its_own_threshold():
    heads = _build_heads("MODEL.ROI_HEADS.LOW_QUALITY_MATCHES", False)
    box = torch.tensor([[10.0, 10, 50, 10 + 0.65 * 40]])  # IoU 0.65 with the first object
    classes = []
    for stage in range(3):
        (samples,) = heads.sample([box], [_make_objects()], stage, is_first=False)
        classes += samples.gt_classes[~samples.is_added].tolist()
    assert classes == [2, 2, BACKGROUND]


def test_scores_are_merged_before_or_after_the_softmax():
    logits = torch.tensor([[[4.0, 0.0]], [[-2.0, 0.0]], [[1.0, 0.0]]])
    by_logits, by_probs = (merge_scores(logits, how)[0, 0].item() for how in ("logits", "probs"))
    sigmoid = torch.tensor([4.0, -2.0, 1.0]).sigmoid()
    assert by_logits == pytest.approx(torch.tensor(1.0).sigmoid().item())
    assert by_probs == pytest.approx(sigmoid.mean().item())
    assert merge_scores(torch.zeros(3, 0, 5), "logits").shape == (0, 5)


def test_all_losses_of_a_stage_have_its_weight():
    losses = []
    for weights in ((1.0, 0.5, 0.25), (1.0, 1.0, 1.0)):
        heads = _build_heads("MODEL.HTC.STAGE_LOSS_WEIGHTS", weights)
        features = {
            f"p{level}": torch.randn(
                1, 64, 128 >> level, 128 >> level, generator=torch.Generator().manual_seed(level)
            )
            for level in range(2, 7)
        }
        proposals = Instances(SIZE, proposal_boxes=Boxes(OBJECTS + 3))
        torch.manual_seed(0)
        with EventStorage(), torch.no_grad():
            losses.append(heads(None, features, [proposals], [_make_objects()])[1])
    weighted, plain = losses
    for stage, weight in enumerate((1.0, 0.5, 0.25)):
        for name in ("cls", "box_reg", "mask"):
            key = f"loss_{name}_stage{stage}"
            torch.testing.assert_close(weighted[key], weight * plain[key])
            assert plain[key] > 0
