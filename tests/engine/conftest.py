"""A config that trains in a fraction of a second an iteration."""

import pytest

from instancezoo import model_zoo
from instancezoo.config import follow_dataset


@pytest.fixture
def small_cfg(few_shapes, narrow_model, tmp_path):
    cfg = model_zoo.get_config(
        "mask_rcnn/mask_rcnn_tiny",
        [
            *("DATASETS.TRAIN", (few_shapes,), "DATASETS.TEST", ()),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64),
            *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", (3,)),
            *("SOLVER.WARMUP_ITERS", 2, "SOLVER.CHECKPOINT_PERIOD", 2),
            *("MODEL.DEVICE", "cpu"),  # where the same steps give the same bits
            *("TEST.NUM_PICTURES", 0, "OUTPUT_DIR", str(tmp_path / "run"), *narrow_model),
        ],
    )
    follow_dataset(cfg, 4, few_shapes)
    return cfg
