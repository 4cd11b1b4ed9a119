"""Train a recipe: start train.py on this machine as `accelerate launch` would, and return its exit code."""

import argparse
import sys

EPILOG = """
Without --launch one process trains. With it, --num_processes ranks do, or as many as the launch file says. SIGTERM,
SIGINT, SIGUSR1 and SIGUSR2 are passed on to every rank: the run saves and ends with 75. Exit codes are train.py's own:
0 done; 1 a bug; 2 a mistake in the recipe, the data or the launch; 3 training failed; 75 interrupted, run me again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.usage = "onecurve train RECIPE [--launch NAME] [--num_processes N] [--section.key value ...]"
    parser.epilog = EPILOG
    parser.set_defaults(overrides=[])
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file; --section.key value overrides it")
    parser.add_argument(
        "--launch", metavar="NAME", help="a file of accelerate_configs/ (ddp, zero1, zero2, zero3, ...), or a path"
    )
    parser.add_argument("--num_processes", type=int, metavar="N", help="ranks, in place of the launch file's")
    parser.add_argument("--keys", action="store_true", help="print every key of a recipe and what it means")


def run(arguments: argparse.Namespace) -> int:
    """Start the ranks and wait for them."""
    if arguments.keys:
        from onecurve.config import manual

        print(manual())  # noqa: T201
        return 0
    from onecurve.config.reading import USAGE
    from onecurve.errors import ConfigError
    from onecurve.launching import Launch, find_launch_file
    from onecurve.preflight import read

    if not arguments.recipe:
        raise ConfigError(USAGE.replace("train.py", "onecurve train"))
    argv = [arguments.recipe, *arguments.overrides]
    read(argv)  # a mistake in it is answered here and now, once
    with Launch(argv, find_launch_file(arguments.launch, arguments.num_processes)) as launch:
        exit_code = launch.run()
    if reason := launch.reason(exit_code):
        print(f"onecurve train: {reason}", file=sys.stderr)  # noqa: T201
    return exit_code
