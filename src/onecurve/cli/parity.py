"""Train a recipe's first steps in every launch form this machine can hold and compare the curves."""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from onecurve.errors import TrainingError

EPILOG = """
--section.key value overrides the recipe, as with train.py. Each form starts from one saved initialisation and is
compared with one process of the same micro-batch size. Exit code 0: all within the tolerance; 1: one is not, or did
not run; 2: the recipe is invalid.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = EPILOG
    parser.set_defaults(overrides=[])
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--steps", type=_positive, default=20, help="how many of the run's first steps (default 20)")
    parser.add_argument(
        "--forms",
        nargs="+",
        default=["ddp", "zero1", "zero2", "zero3"],
        help="files of accelerate_configs/ (default: ddp zero1 zero2 zero3)",
    )
    parser.add_argument(
        "--ranks", nargs="+", type=_positive, default=[1, 2, 4], help="numbers of ranks (default: 1 2 4)"
    )
    parser.add_argument(
        "--micro_batch_sizes",
        nargs="+",
        type=_positive,
        default=[],
        help="in tokens where the recipe cuts by them (default: the recipe's, and half of it where it is of examples)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-6,
        help="largest relative difference of loss and step-1 gradient; ten times as much of the gradient norm "
        "(default 1e-6)",
    )
    parser.add_argument("--against", choices=["HF"], help="also run the plain Hugging Face Trainer; never judged")
    parser.add_argument("--json", type=Path, help="where to write every number measured")
    parser.add_argument("--work_dir", type=Path, help="where the runs go and stay; a temporary folder when absent")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; return 1 past the tolerance."""
    if arguments.work_dir:
        return _compare(arguments, arguments.work_dir.resolve())
    with TemporaryDirectory(prefix="onecurve-parity-") as folder:
        return _compare(arguments, Path(folder))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1; got {text!r}")
    return int(text)


def _compare(arguments: argparse.Namespace, work_dir: Path) -> int:
    from onecurve.parity.request import Request

    request = Request(
        argv=[arguments.recipe, *arguments.overrides],
        strategies=arguments.forms,
        ranks=arguments.ranks,
        micro_batch_sizes=arguments.micro_batch_sizes,
        steps=arguments.steps,
        tolerance=arguments.tolerance,
        work_dir=work_dir,
        keep=arguments.work_dir is not None,
        against=arguments.against,
    )
    checked, sizes = request.check()
    # The recipe is valid: only now import what takes seconds
    from onecurve.parity.comparison import compare
    from onecurve.parity.report import table, to_json

    try:
        report = compare(request, checked, sizes, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    except TrainingError as error:
        print(f"onecurve parity: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(table(report))  # noqa: T201
    if arguments.json:
        arguments.json.write_text(to_json(report), encoding="utf-8")
    return int(not report.passed)
