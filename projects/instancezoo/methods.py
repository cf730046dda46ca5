"""All methods; importing this module registers them in Detectron2's registries."""

from instancezoo import (
    fcos,
    htc,
    mask_rcnn,
    metric,
    panet,
    pointrend,
    polarmask,
    semiconv,
    solo,
    solov2,
    ssap,
    unet_boundary,
    watershed,
    yolact,
)
from instancezoo.method import Method

# A method adds one line here, and nothing else outside its own folders.
METHODS: list[Method] = [
    mask_rcnn.METHOD,
    solo.METHOD,
    solov2.METHOD,
    fcos.METHOD,
    polarmask.METHOD,
    pointrend.METHOD,
    htc.METHOD,
    yolact.METHOD,
    panet.METHOD,
    semiconv.METHOD,
    ssap.METHOD,
    watershed.METHOD,
    metric.METHOD,
    unet_boundary.METHOD,
]
