"""The command `instancezoo`: imports the subcommand's file and runs it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from instancezoo.cli.quiet import silence_dependencies
from instancezoo.errors import ZooError

# name -> purpose; the code is imported only when the subcommand runs
SUBCOMMANDS = {
    "convert": "convert a published checkpoint to ours",
    "predict": "draw and export instances on pictures and videos",
    "doctor": "check a config and its data before training",
    "benchmark": "measure the time of each stage of inference",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `instancezoo <subcommand> ...`.

    Args:
        arguments: words after the command's name; by default those of the process.

    Returns:
        The exit code: 0 for success, 1 after an error that was printed.
    """
    silence_dependencies()
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="instancezoo", description="Instance segmentation on Detectron2."
    )
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, purpose in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=purpose, description=purpose)
        if name == asked:
            module = import_module(f"instancezoo.cli.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    parsed = parser.parse_args(words)
    logger = logging.getLogger("instancezoo")
    if not logger.handlers:  # progress and warnings to stderr: stdout holds only the result
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    try:
        return int(parsed.run(parsed))
    except (ZooError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
