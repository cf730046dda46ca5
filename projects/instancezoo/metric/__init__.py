"""Deep metric learning; importing it registers the method."""

from instancezoo.method import Method

from .config import add_metric_config, keep_all_pixels
from .head import MetricHead
from .segmentor import DeepMetricLearning

METHOD = Method(
    name="Deep metric learning",
    registry_names=("DeepMetricLearning",),
    add_config=add_metric_config,
    detection_limit="MODEL.METRIC.MAX_INSTANCES",
    candidate_limits=("MODEL.METRIC.MAX_SEEDS",),
    score_keys=("MODEL.METRIC.SCORE_THRESH",),
    prepare_untrained=keep_all_pixels,
    stages={"group": "group pixels", "make_masks": "make masks"},
)

__all__ = ["METHOD", "DeepMetricLearning", "MetricHead"]
