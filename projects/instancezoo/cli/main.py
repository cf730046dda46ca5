"""The command `instancezoo`: imports the subcommand's file and runs it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from instancezoo.cli.quiet import silence_dependencies, wait_passively
from instancezoo.errors import ZooError
from instancezoo.files import describe_os_error

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
        The exit code: 0 for success, 1 after an error that was printed, 130 after Ctrl-C.
    """
    silence_dependencies()
    wait_passively()
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
        text = describe_os_error(error) if isinstance(error, OSError) else error
        print(f"error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
