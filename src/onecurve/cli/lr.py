"""Find a learning rate: a short run whose rate rises from step to step, and the curve of its losses."""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

EPILOG = """
The rate rises from --from to --to by the same factor each step, from the model the recipe starts with, over its data in
its order and global batches. The test stops early once the running average of the loss is above 4 times its lowest
value, or the loss is not finite. The recipe's own run directory is not touched. --section.key value overrides the
recipe, as with train.py. Exit code 0: rates are suggested; 1: the loss never falls, or a bug; 2: a mistake in the
recipe, the data or the launch; 3: training failed; 75: interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.usage = "onecurve lr RECIPE [--launch NAME] [--num_processes N] [--section.key value ...]"
    parser.epilog = EPILOG
    parser.set_defaults(overrides=[])
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("--from", dest="first", type=float, default=1e-7, help="the first rate (default 1e-7)")
    parser.add_argument("--to", dest="last", type=float, default=1.0, help="the last rate (default 1)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default 100)")
    parser.add_argument("--launch", metavar="NAME", help="as of onecurve train; without it, one process")
    parser.add_argument("--num_processes", type=int, metavar="N", help="ranks, in place of the launch file's")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where lr.json, lr.csv and lr.png go (default: OUTPUT_DIR-lr)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Start the ranks, wait for them, and show and write the curve."""
    from onecurve.errors import ConfigError
    from onecurve.launching import Launch, find_launch_file
    from onecurve.machine.speaker import SPEAKER
    from onecurve.range_test.report import as_text, read_curve, write
    from onecurve.range_test.request import Asked

    argv = [arguments.recipe, *arguments.overrides]
    asked = Asked(arguments.first, arguments.last, arguments.steps)
    checked = asked.check(argv)
    file = find_launch_file(arguments.launch, arguments.num_processes)
    folder = arguments.output or Path(f"{Path(checked.recipe.output_dir)}-lr")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} cannot be made: {error.strerror}.", where="--output") from None
    for remark in asked.remarks(checked):
        print(f"onecurve lr: {remark}", flush=True)  # noqa: T201
    with TemporaryDirectory(prefix="onecurve-lr-") as scratch:
        own = Path(scratch) / "run"
        words = [str(asked.first), str(asked.last), str(asked.steps), *argv]
        words += ["--output_dir", str(own), "--train.resume", "never"]
        speaker = {SPEAKER: "onecurve lr"}
        with Launch(words, file, variables=speaker, program=["-m", "onecurve.range_test.program"]) as launch:
            exit_code = launch.run()
        if reason := launch.reason(exit_code):
            print(f"onecurve lr: {reason}", file=sys.stderr)  # noqa: T201
        if exit_code:
            return exit_code
        curve = read_curve(own / "metrics.jsonl", asked.steps)
    about = {"recipe": arguments.recipe, "from": asked.first, "to": asked.last, "steps": asked.steps}
    written = write(curve, folder, about | {"launch": arguments.launch})
    print(f"{as_text(curve)}\n{written}")  # noqa: T201
    return 0 if curve.suggestions() else 1
