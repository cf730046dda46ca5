"""Result of a benchmark, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """Inference on one image with masks in one form; medians over repeats.

    Attributes:
        masks: "rle" or "bitmask".
        total_ms: milliseconds of a whole call, timed without stages.
        stages: milliseconds of each stage without those inside it, in the order of their start.
    """

    masks: str
    total_ms: float
    stages: dict[str, float]


@dataclass(frozen=True)
class Report:
    """One config on one device.

    Attributes:
        config: its file.
        device: its name, with the number of threads on a CPU.
        weights: the file, or the seed of random ones.
        image_size: height and width of the image in pixels.
        input_size: height and width of the resized image.
        num_detections: number of instances found.
        repeats: number of repeats of each run.
        runs: one for each form of masks.
        peak_memory_mib: largest use of GPU memory; None on a CPU.
    """

    config: str
    device: str
    weights: str
    image_size: tuple[int, int]
    input_size: tuple[int, int]
    num_detections: int
    repeats: int
    runs: list[Run]
    peak_memory_mib: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as plain dicts and lists."""
        return asdict(self)


def format_report(report: Report) -> str:
    """A table with a row for each stage and two columns for each form of masks."""
    lines = [
        f"{report.config}, {report.device}, {report.weights}",
        f"image {report.image_size[1]}x{report.image_size[0]}, resized to {report.input_size[1]}x"
        f"{report.input_size[0]}; {report.num_detections} detections; medians of {report.repeats}",
    ]
    if report.peak_memory_mib is not None:
        lines.append(f"largest use of GPU memory {report.peak_memory_mib:.0f} MiB")
    names = list(dict.fromkeys(name for run in report.runs for name in run.stages))
    width = max(map(len, [*names, "total, not split"])) + 2
    heads = "".join(f"{run.masks:>12} ms   share" for run in report.runs)
    lines.append("stage".ljust(width) + heads)
    for name in names:
        lines.append(name.ljust(width) + "".join(_format_stage(run, name) for run in report.runs))
    sums = "".join(f"{sum(run.stages.values()):15.1f} {'100.0%':>7}" for run in report.runs)
    totals = "".join(f"{run.total_ms:15.1f} {'':>7}" for run in report.runs)
    lines += ["sum".ljust(width) + sums, "total, not split".ljust(width) + totals]
    return "\n".join(line.rstrip() for line in lines)


def _format_stage(run: Run, name: str) -> str:
    if name not in run.stages:
        return " " * 23
    share = run.stages[name] / max(sum(run.stages.values()), 1e-9)
    return f"{run.stages[name]:15.1f} {share:7.1%}"
