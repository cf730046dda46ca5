"""`ImagePredictor` keeps exactly the detections with the wanted scores, for every method."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from instancezoo.inference import ImagePredictor
from instancezoo.inference.confidence import (
    apply_confidence,
    find_detection_limit,
    find_lowest_score,
    list_score_keys,
)
from instancezoo.testing import (
    build_seeded_model,
    get_tiny_config,
    keep_everything,
    list_tiny_configs,
    make_image,
)

IMAGE = make_image(64, 96).permute(1, 2, 0).numpy()


CONFIGS = [name for name in list_tiny_configs() if "efficientnet" not in name]


@pytest.fixture(params=CONFIGS)
def case(request, tmp_path):
    """A tiny config with random weights that find something, and those of its own thresholds."""
    cfg = get_tiny_config(request.param)
    cfg.MODEL.WEIGHTS = str(tmp_path / "random.pth")
    model = build_seeded_model(cfg)
    with torch.no_grad():  # scores that differ between places and classes
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and any(part in name for part in ("cls", "cate", "predict")):
                parameter.mul_(20)
    torch.save(model.state_dict(), cfg.MODEL.WEIGHTS)
    return SimpleNamespace(cfg=cfg, lowest=keep_everything(cfg.clone()))


def _find(cfg, confidence):
    found = ImagePredictor(cfg, confidence)(IMAGE)
    order = found.scores.argsort(descending=True, stable=True)
    return found.scores[order], found.pred_boxes.tensor[order]


def test_scores_from_the_confidence_on_and_no_others(case):
    scores, boxes = _find(case.lowest, None)
    scores, boxes = scores[scores > 0], boxes[scores > 0]
    wanted = scores[scores <= 1]
    assert len(wanted) >= 4  # the quarters below are different ones
    for confidence in (0.0, *(float(wanted[len(wanted) * k // 4]) for k in (1, 3))):
        kept = scores >= confidence
        found = _find(case.lowest, confidence)
        torch.testing.assert_close(found[0], scores[kept])
        torch.testing.assert_close(found[1], boxes[kept])


def test_zero_goes_below_the_methods_own_threshold(case):
    keys = list_score_keys(case.cfg)
    assert keys
    cfg = case.lowest.clone()
    cfg.merge_from_list([word for key in keys for word in (key, 1.0)])
    assert len(_find(cfg, None)[0]) < len(_find(cfg, 0.0)[0])


def test_an_unknown_architecture_has_detectron2s_keys():
    cfg = get_tiny_config("mask_rcnn/mask_rcnn_tiny", ["MODEL.META_ARCHITECTURE", "RetinaNet"])
    assert "MODEL.RETINANET.SCORE_THRESH_TEST" in list_score_keys(cfg)
    apply_confidence(cfg, 0.3)
    value = cfg.MODEL.RETINANET.SCORE_THRESH_TEST
    assert value == pytest.approx(0.3, rel=1e-5) and np.float32(value) < np.float32(0.3)


@pytest.mark.parametrize(
    "name,lowest",
    [("mask_rcnn", 0.05), ("solo", 0.05), ("polarmask", 0.0)],  # PolarMask's is of another quantity
)
def test_lowest_score_is_that_of_the_thresholds(name, lowest):
    assert find_lowest_score(get_tiny_config(f"{name}/{name}_tiny")) == lowest


def test_detection_limit_is_that_of_the_method():
    cfg = get_tiny_config("solo/solo_tiny", ["MODEL.SOLO.MAX_PER_IMG", 7])
    assert find_detection_limit(cfg) == 7
    unlimited = get_tiny_config("mask_rcnn/mask_rcnn_tiny", ["TEST.DETECTIONS_PER_IMAGE", -1])
    assert find_detection_limit(unlimited) > 10**9


def test_thresholds_below_the_confidence_may_stay():
    cfg = get_tiny_config("mask_rcnn/mask_rcnn_tiny")
    apply_confidence(cfg, 0.5, may_raise=False)
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05
    apply_confidence(cfg, 0.01, may_raise=False)
    assert 0 < cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST < 0.01
