"""Layout of the published checkpoint, a MATLAB file of 70 arrays."""

from __future__ import annotations

from torch import Tensor

from instancezoo.checkpoint.rename import Layout, Row, TrainedOn, Transform

from .networks import make_bilinear_filters

# Published name of a network, and ours
_NETWORKS = (("direction", "head.direction_net"), ("depth", "head.energy_net"))
# Published layer of filters, ours, and a published layer with biases for each of its channels
_UPSAMPLING = (
    ("direction/upscore5_3", "head.direction_net.up5", "direction/fcn5_3", 8),
    ("direction/upscore4_3", "head.direction_net.up4", "direction/fcn4_3", 4),
    ("direction/upscore3_1", "head.direction_net.up", "direction/fuse_3", 8),
    ("depth/upscore", "head.energy_net.up", "depth/fcn2", 8),
)


def _to_kernel(weight: Tensor) -> Tensor:
    """(rows, columns, in, out) -> (out, in, rows, columns); of filters in and out change places."""
    return weight.float().permute(3, 2, 0, 1).contiguous()


def _to_vector(bias: Tensor) -> Tensor:
    """MATLAB has no vectors, only matrices of one row."""
    return bias.float().reshape(-1)


def _make_filters(size: int) -> Transform:
    def make(bias: Tensor) -> Tensor:
        return make_bilinear_filters(bias.numel(), size)

    return make


def _list_rows() -> tuple[Row, ...]:
    rows: list[Row] = [
        (f"{theirs}/up_filter", f"{ours}.weight", _to_kernel) for theirs, ours, _, _ in _UPSAMPLING
    ]
    for theirs, ours in _NETWORKS:
        rows.append((f"{theirs}/*/weights", f"{ours}.*.weight", _to_kernel))
        rows.append((f"{theirs}/*/biases", f"{ours}.*.bias", _to_vector))
    return tuple(rows)


LAYOUTS = (
    Layout(
        name="Deep watershed (Cityscapes)",
        method="Deep watershed",
        config="watershed/deep_watershed_cityscapes",
        licence="MIT (min2209/dwt)",
        rows=_list_rows(),
        # No tensor depends on the classes, which are codes of the input: any that is there will do.
        trained_on=TrainedOn("cityscapes_fine_instance_seg_train", "direction/conv1_1/weights", 3),
        must=("direction/conv1_1/weights", "direction/fuse_3/biases", "depth/fcn2/biases"),
        derived=tuple(
            (f"{source}/biases", f"{ours}.weight", _make_filters(size))
            for _, ours, source, size in _UPSAMPLING
        ),
    ),
)
