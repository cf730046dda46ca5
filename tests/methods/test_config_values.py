"""Values that a method cannot work with are refused while its model is built, with their key."""

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
    "config,key,value,message",
    [
        (FCOS, "FPN.OUT_CHANNELS", 48, "FPN.OUT_CHANNELS is 48; norm GN needs a multiple of 32"),
        (FCOS, "FCOS.PRIOR_PROB", 0.0, "it must be between 0.0001 and 0.9999"),
        (FCOS, "FCOS.POS_RADIUS", -1.0, "it must be 0.01 or more"),
        (FCOS, "FCOS.NUM_CLS_CONVS", -1, "it must be 0 or more"),
        (FCOS, "FCOS.POST_NMS_TOPK_TEST", -1, "it must be 1 or more"),
        (FCOS, "FCOS.IN_FEATURES", [], r"IN_FEATURES is \[\].*p3, p4"),
        (FCOS, "FCOS.SIZES_OF_INTEREST", ["a", "b", "c", "d"], "in ascending order"),
        (FCOS, "FCOS.SIZES_OF_INTEREST", [192, 96, 48, 24], "in ascending order"),
        (POLARMASK, "POLARMASK.SIZES_OF_INTEREST", [0, 32, 64, 128], "in ascending order"),
        (POLARMASK, "POLARMASK.NORM", "none", "it must be one of: , BN"),
        (POLARMASK, "POLARMASK.NUM_RAYS", 2, "it must be between 3 and 360"),
        (POLARMASK, "POLARMASK.TOPK_CANDIDATES_TEST", -1, "it must be 1 or more"),
        (SOLO, "SOLO.NORM", "none", "it must be one of: , BN"),
        (SOLO, "SOLO.TYPE_DCN", "DCNv3", "it must be one of: DCN, DCNv2"),
        (SOLO, "SOLO.INSTANCE_CHANNELS", 65, "SOLO.INSTANCE_CHANNELS is 65; norm GN needs"),
        (SOLO, "SOLO.NUM_INSTANCE_CONVS", 0, "it must be 1 or more"),
        (SOLO, "SOLO.NUM_GRIDS", [16, 12, 10, 8, 0], "it must be whole numbers above 0"),
        (SOLO, "SOLO.NUM_GRIDS", [16, 12, 10, 8, 6.5], "it must be whole numbers above 0"),
        (SOLO, "SOLO.FPN_SCALE_RANGES", [1, 40, 32, 80, 64], "it must be one pair"),
        (SOLO, "SOLO.FPN_SCALE_RANGES", [[1, 9]] * 4 + [[9, 1]], "it must be one pair"),
        (SOLO, "SOLO.MAX_PER_IMG", 0, "it must be 1 or more"),
        (SOLO, "SOLO.INSTANCE_IN_FEATURES", ["p2"] * 5, "each map once, the finest first"),
        (SOLO, "SOLO.INSTANCE_IN_FEATURES", ["p6", "p5", "p4", "p3", "p2"], "the finest first"),
        (SOLOV2, "SOLOV2.NUM_KERNELS", 63, "SOLOV2.NUM_KERNELS is 63; norm GN needs"),
        (SOLOV2, "SOLOV2.MASK_CHANNELS", 50, "SOLOV2.MASK_CHANNELS is 50; norm GN needs"),
        (SOLOV2, "SOLOV2.MASK_IN_FEATURES", ["p2", "p4"], "it must be neighbours of"),
        (SOLOV2, "SOLOV2.MASK_IN_FEATURES", ["p3", "p2"], "it must be neighbours of"),
        (POINTS_V2, "SOLOV2.MASK_IN_FEATURES", [], "SOLOV2.INSTANCE_IN_FEATURES: p2, p3"),
        (POINTS_V2, "POINT_HEAD.IN_FEATURES", (), "SOLOV2.INSTANCE_IN_FEATURES: p2, p3"),
        (POINTS_V2, "POINT_HEAD.TRAIN_NUM_POINTS", 0, "it must be 1 or more"),
        (POINTS, "POINT_HEAD.TRAIN_NUM_POINTS", -5, "it must be 1 or more"),
        (POINTS, "POINT_HEAD.OVERSAMPLE_RATIO", 0, "it must be 1 or more"),
        (POINTS, "POINT_HEAD.IMPORTANCE_SAMPLE_RATIO", 1.5, "it must be between 0 and 1"),
        (POINTS, "POINT_HEAD.SUBDIVISION_NUM_POINTS", -4, "it must be 1 or more"),
        (POINTS, "POINT_HEAD.SUBDIVISION_STEPS", -1, "it must be 0 or more"),
        (POINTS, "POINT_HEAD.IN_FEATURES", (), "ROI_HEADS.IN_FEATURES: p2, p3"),
        (POINTS, "POINT_HEAD.NAME", "Foo", "it must be one of: StandardPointHead"),
        (POINTS, "ROI_MASK_HEAD.IN_FEATURES", (), "ROI_HEADS.IN_FEATURES: p2, p3"),
        (POINTS, "ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 0, "it must be 1 or more"),
        (POINTS, "ROI_MASK_HEAD.POOLER_RESOLUTION", 1, "it must be 2 or more"),
    ],
)
def test_value_is_refused_with_its_key(config, key, value, message):
    cfg = get_tiny_config(config, [f"MODEL.{key}", value])
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(cfg)
    assert f"MODEL.{key} is " in str(caught.value)
