"""Rows of backbones that checkpoints of many methods share, and layouts of bare backbones."""

from __future__ import annotations

from .rename import Layout, Row, Transform

ZOO_LICENCE = "CC BY-SA 3.0 (Detectron2's MODEL_ZOO.md)"
COUNTERS = "**.num_batches_tracked"  # absent from frozen norms, not needed by others
_BOTTOM_UP = "backbone.bottom_up"


def resnet_rows(prefix: str, variance: Transform | None = None) -> tuple[Row, ...]:
    """Make the rows of a torchvision ResNet.

    Args:
        prefix: beginning of the published names, for example "backbone.body.".
        variance: transform of every running variance.
    """
    block, ours = f"{prefix}layer{{s}}.{{b}}", f"{_BOTTOM_UP}.res{{s+1}}.{{b}}"
    norms = (
        (f"{prefix}bn1", f"{_BOTTOM_UP}.stem.conv1.norm"),
        (f"{block}.bn{{c}}", f"{ours}.conv{{c}}.norm"),
        (f"{block}.downsample.1", f"{ours}.shortcut.norm"),
    )
    variances: list[Row] = []
    if variance is not None:
        variances = [(f"{a}.running_var", f"{b}.running_var", variance) for a, b in norms]
    return (
        (f"{prefix}conv1.weight", f"{_BOTTOM_UP}.stem.conv1.weight"),
        (f"{block}.conv{{c}}.weight", f"{ours}.conv{{c}}.weight"),
        (f"{block}.downsample.0.weight", f"{ours}.shortcut.weight"),
        *variances,
        *((f"{theirs}.*", f"{here}.*") for theirs, here in norms),
    )


IMAGENET_TORCHVISION = Layout(
    name="torchvision resnet (ImageNet)",
    method="backbone",
    config="base/dense_fpn",
    licence="BSD-3-Clause (torchvision), trained on ImageNet",
    must=("conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.0.conv2.weight"),
    rows=resnet_rows(""),
    unused=("fc.*", COUNTERS),
    fills="backbone",
)

# Detectron2's R-50.pkl and R-101.pkl: Caffe2's names; norm statistics may be folded into s and b.
_NORM_NAMES = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}
_CAFFE2_CONVS = {
    "conv1": "stem.conv1",
    "res_conv1": "stem.conv1",  # only its norm has this name
    "res{s}_{b}_branch1": "res{s}.{b}.shortcut",
    "res{s}_{b}_branch2a": "res{s}.{b}.conv1",
    "res{s}_{b}_branch2b": "res{s}.{b}.conv2",
    "res{s}_{b}_branch2c": "res{s}.{b}.conv3",
}

IMAGENET_CAFFE2 = Layout(
    name="Detectron2 ImageNetPretrained (Caffe2 names)",
    method="backbone",
    config="base/rcnn_fpn",
    licence=f"MIT (MSRA), as distributed: {ZOO_LICENCE}",
    must=("conv1_w", "res2_0_branch2a_w", "res5_0_branch2c_w"),
    must_not=("fpn_**",),
    rows=(
        *((f"{there}_w", f"{_BOTTOM_UP}.{here}.weight") for there, here in _CAFFE2_CONVS.items()),
        *(
            (f"{there}_bn_{theirs}", f"{_BOTTOM_UP}.{here}.norm.{ours}")
            for there, here in _CAFFE2_CONVS.items()
            for theirs, ours in _NORM_NAMES.items()
        ),
    ),
    # conv1's bias is zero and followed by a norm
    unused=("fc1000_*", "pred_*", "conv1_b"),
    fills="backbone",
)

IMAGENET_DETECTRON2 = Layout(
    name="Detectron2 ImageNetPretrained",
    method="backbone",
    config="base/rcnn_fpn",
    licence=ZOO_LICENCE,
    must=("stem.conv1.weight", "res2.0.conv1.weight", "res5.0.conv2.weight"),
    rows=(
        ("stem.conv**", f"{_BOTTOM_UP}.stem.conv**"),
        ("res{s}.**", f"{_BOTTOM_UP}.res{{s}}.**"),
    ),
    unused=("stem.fc.*", "fc.*", "linear.*"),
    fills="backbone",
)

BACKBONE_LAYOUTS = (IMAGENET_TORCHVISION, IMAGENET_CAFFE2, IMAGENET_DETECTRON2)
