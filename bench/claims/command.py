"""What the scripts on the claims are told."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.shapes import shape_of


def parser_of(description: str | None, output: Path) -> argparse.ArgumentParser:
    """A parser of what all these scripts can be told.

    Args:
        description: of the script.
        output: where results go by default. Those of a trial may not, see `parsed`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints, trained models and records")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the 12-layer model")
    parser.add_argument("--limit-samples", type=int, help="at most so many rows of each part, to try it out")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--output", type=Path, default=output)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments. Exits where a trial would write among the results, or the backbone is not the declared one's shape."""
    arguments = parser.parse_args()
    if not (arguments.backbone / "config.json").is_file():
        parser.error(f"--backbone {arguments.backbone}: there is no folder of a model")
    if arguments.limit_samples is not None and arguments.output == parser.get_default("output"):
        parser.error("the results of a trial go elsewhere: give --output beside --limit-samples")
    if arguments.limit_samples is None and shape_of(str(arguments.backbone)) != "e5":
        parser.error(f"--backbone {arguments.backbone}: it must have the shape of multilingual-e5-small")
    return arguments
