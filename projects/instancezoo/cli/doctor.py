"""`instancezoo doctor`: checks of a config and its data before training."""

from __future__ import annotations

import argparse

from instancezoo.cli.arguments import add_dataset_argument
from instancezoo.doctor import Severity, format_findings
from instancezoo.doctor.diagnose import diagnose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `instancezoo doctor`, the same as those of `train_net.py`."""
    parser.add_argument("--config-file", required=True, metavar="FILE")
    add_dataset_argument(parser)
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs to train on")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")


def run(args: argparse.Namespace) -> int:
    """Print the findings. Returns 1 if there is an error among them, else 0."""
    findings = diagnose(args.config_file, args.opts, args.dataset, args.num_gpus)
    print(format_findings(findings))
    return 1 if any(finding.severity is Severity.ERROR for finding in findings) else 0
