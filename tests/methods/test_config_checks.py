"""Values that a method cannot work with are refused while its model is built, with their key."""

import re

import pytest
from detectron2.modeling import build_model

from instancezoo.errors import ConfigError
from instancezoo.testing import get_tiny_config

FCOS, POLARMASK, SOLO, SOLOV2, POINTS, POINTS_V2 = (
    "fcos/fcos_tiny",
    "polarmask/polarmask_tiny",
    "solo/solo_tiny",
    "solov2/solov2_tiny",
    "pointrend/pointrend_tiny",
    "pointrend/solov2_pointrend_tiny",
)


@pytest.mark.parametrize(
    "config,key,value,named",
    [
        (FCOS, "FPN.OUT_CHANNELS", 48, "GN.*32"),
        (FCOS, "FCOS.PRIOR_PROB", 0.0, r"0\.0001.*0\.9999"),
        (FCOS, "FCOS.POS_RADIUS", -1.0, r"0\.01"),
        (FCOS, "FCOS.NUM_CLS_CONVS", -1, ""),
        (FCOS, "FCOS.POST_NMS_TOPK_TEST", -1, ""),
        (FCOS, "FCOS.IN_FEATURES", [], "p3, p4"),
        (FCOS, "FCOS.SIZES_OF_INTEREST", ["a", "b", "c", "d"], ""),
        (FCOS, "FCOS.SIZES_OF_INTEREST", [192, 96, 48, 24], ""),
        (POLARMASK, "POLARMASK.SIZES_OF_INTEREST", [0, 32, 64, 128], ""),
        (POLARMASK, "POLARMASK.NORM", "none", ", BN"),
        (POLARMASK, "POLARMASK.NUM_RAYS", 2, "3.*360"),
        (POLARMASK, "POLARMASK.TOPK_CANDIDATES_TEST", -1, ""),
        (SOLO, "SOLO.NORM", "none", ", BN"),
        (SOLO, "SOLO.TYPE_DCN", "DCNv3", "DCN, DCNv2"),
        (SOLO, "SOLO.INSTANCE_CHANNELS", 65, "GN"),
        (SOLO, "SOLO.NUM_INSTANCE_CONVS", 0, ""),
        (SOLO, "SOLO.NUM_GRIDS", [16, 12, 10, 8, 0], ""),
        (SOLO, "SOLO.NUM_GRIDS", [16, 12, 10, 8, 6.5], ""),
        (SOLO, "SOLO.FPN_SCALE_RANGES", [1, 40, 32, 80, 64], ""),
        (SOLO, "SOLO.FPN_SCALE_RANGES", [[1, 9]] * 4 + [[9, 1]], ""),
        (SOLO, "SOLO.MAX_PER_IMG", 0, ""),
        (SOLO, "SOLO.INSTANCE_IN_FEATURES", ["p2"] * 5, ""),
        (SOLO, "SOLO.INSTANCE_IN_FEATURES", ["p6", "p5", "p4", "p3", "p2"], ""),
        (SOLOV2, "SOLOV2.NUM_KERNELS", 63, "GN"),
        (SOLOV2, "SOLOV2.MASK_CHANNELS", 50, "GN"),
        (SOLOV2, "SOLOV2.MASK_IN_FEATURES", ["p2", "p4"], ""),
        (SOLOV2, "SOLOV2.MASK_IN_FEATURES", ["p3", "p2"], ""),
        (POINTS_V2, "SOLOV2.MASK_IN_FEATURES", [], "SOLOV2.INSTANCE_IN_FEATURES: p2, p3"),
        (POINTS_V2, "POINT_HEAD.IN_FEATURES", (), "SOLOV2.INSTANCE_IN_FEATURES: p2, p3"),
        (POINTS_V2, "POINT_HEAD.TRAIN_NUM_POINTS", 0, ""),
        (POINTS, "POINT_HEAD.TRAIN_NUM_POINTS", -5, ""),
        (POINTS, "POINT_HEAD.OVERSAMPLE_RATIO", 0, ""),
        (POINTS, "POINT_HEAD.IMPORTANCE_SAMPLE_RATIO", 1.5, "0 and 1"),
        (POINTS, "POINT_HEAD.SUBDIVISION_NUM_POINTS", -4, ""),
        (POINTS, "POINT_HEAD.SUBDIVISION_STEPS", -1, ""),
        (POINTS, "POINT_HEAD.IN_FEATURES", (), "ROI_HEADS.IN_FEATURES: p2, p3"),
        (POINTS, "POINT_HEAD.NAME", "Foo", "StandardPointHead"),
        (POINTS, "ROI_MASK_HEAD.IN_FEATURES", (), "ROI_HEADS.IN_FEATURES: p2, p3"),
        (POINTS, "ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 0, ""),
        (POINTS, "ROI_MASK_HEAD.POOLER_RESOLUTION", 1, ""),
    ],
)
def test_value_is_refused_with_its_key(config, key, value, named):
    cfg = get_tiny_config(config, [f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=rf"MODEL\.{re.escape(key)}\b.*{named}"):
        build_model(cfg)
