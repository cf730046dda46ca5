"""Time of inference stage by stage, for any model."""

from .measure import measure_config
from .report import Report, Run, format_report

__all__ = ["Report", "Run", "format_report", "measure_config"]
