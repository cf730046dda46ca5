"""HTC with masks refined at points."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from instancezoo.errors import ConfigError
from instancezoo.testing import build_seeded_model, get_tiny_config, make_input

NAME = "htc/htc_pointrend_tiny"
BOXES = [[10, 12, 60, 70], [50, 40, 120, 110]]


def _build(*overrides):
    return build_seeded_model(get_tiny_config(NAME, list(overrides)))


def _make_features():
    return {f"p{k}": torch.randn(1, 64, 128 >> k, 128 >> k) for k in range(2, 7)}


@pytest.mark.parametrize("merge", ["mean", "last"])
def test_an_untrained_point_head_returns_the_masks_of_htc(merge):
    # The point head starts from the coarse logit; its other weights are silenced here.
    overrides = ["MODEL.HTC.MASK_MERGE", merge]
    model, htc = _build(*overrides), build_seeded_model(get_tiny_config("htc/htc_tiny", overrides))
    for head in model.roi_heads.mask_head:
        torch.nn.init.normal_(head.predictor.weight)
    predictor = model.roi_heads.point_head.predictor
    torch.nn.init.zeros_(predictor.weight[:, :-1])
    own = {k: v for k, v in model.state_dict().items() if "point_head" not in k}
    htc.load_state_dict(own)
    features, found = _make_features(), []
    for heads in (model.roi_heads.eval(), htc.roi_heads.eval()):
        boxes = Boxes(torch.tensor(BOXES).float())
        given = Instances((128, 128), pred_boxes=boxes, pred_classes=torch.tensor([1, 3]))
        with torch.no_grad():
            found.append(heads.forward_with_given_boxes(features, [given])[0].pred_masks)
    refined, coarse = found
    assert refined.shape == (2, 1, 224, 224) and coarse.shape == (2, 1, 28, 28)
    enlarged = torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")
    is_sure = (enlarged - 0.5).abs() > 0.1  # logits, not probabilities, are interpolated
    assert is_sure.float().mean() > 0.3
    same = (refined > 0.5) == (enlarged > 0.5)
    assert same[is_sure].float().mean() > 0.97


def test_the_point_loss_reaches_the_heads_whose_masks_are_merged():
    for merge, expected in (("mean", [True] * 3), ("last", [False, False, True])):
        heads = _build("MODEL.HTC.MASK_MERGE", merge).roi_heads.train()
        objects = make_input(128, 128, BOXES)["instances"]
        fields = objects.get_fields()
        positives = Instances((128, 128), proposal_boxes=objects.gt_boxes, **fields)
        maps, _ = heads.make_maps(_make_features())
        with EventStorage():
            assert "loss_mask_point" not in heads.mask_losses(maps, [positives], 0)
            losses = heads.mask_losses(maps, [positives], 2)
        losses["loss_mask_point"].backward()
        grads = [head.predictor.weight.grad for head in heads.mask_head]
        assert [grad is not None and bool(grad.any()) for grad in grads] == expected
        assert heads.point_head.predictor.weight.grad.any()


def test_without_masks_there_is_nothing_to_refine():
    with pytest.raises(ConfigError, match=r"MODEL\.MASK_ON.*HTCROIHeads"):
        _build("MODEL.MASK_ON", False)
    with pytest.raises(ConfigError, match=r"MODEL\.POINT_HEAD\.IN_FEATURES"):
        _build("MODEL.POINT_HEAD.IN_FEATURES", ("p9",))
