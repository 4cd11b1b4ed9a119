"""Check the machines a run is about to use: versions, devices, disks, network, clocks, speed, and a recipe's needs."""

import argparse
import os
import sys
from pathlib import Path

EPILOG = """
Run it as one process, or on every rank with a launcher: `srun onecurve doctor`, `torchrun ... -m onecurve doctor`,
`accelerate launch ... -m onecurve doctor`. Exit code 0: no failures; 1: at least one failure; 2: the ranks cannot find
each other, or the command line is invalid.

A failure would stop a run or change its curve: packages outside their ranges or different between machines, a GPU that
torch cannot use or that ranks share, a folder that cannot be written or is not on a shared disk, less than 1 GB free or
less than the recipe needs, no file locks, host names that do not resolve between machines, closed ports, a missing
rank, an invalid recipe. A warning does not stop a run: less than 10 GB free, a hub that cannot be reached, clocks more
than a second apart, locks that other machines do not see, a slow rank.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = EPILOG
    parser.set_defaults(overrides=[])
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="also check what this run needs")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for the other ranks (default 120)")
    parser.add_argument("--json", type=Path, help="where rank 0 writes every finding")


def run(arguments: argparse.Namespace) -> int:
    """Print the table on rank 0; return 1 if something failed."""
    from onecurve.errors import ConfigError

    if arguments.overrides and not arguments.recipe:
        raise ConfigError(f"{arguments.overrides[0]} overrides a recipe, but no recipe is given.")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # torch would tell of each attempt to connect with a stack
    from onecurve.doctor.examination import examine
    from onecurve.doctor.report import table, to_json
    from onecurve.run.lifecycle import leave

    report = examine([arguments.recipe, *arguments.overrides] if arguments.recipe else [], arguments.timeout)
    if report.world.rank == 0:
        print(table(report))  # noqa: T201
        if arguments.json:
            arguments.json.write_text(to_json(report), encoding="utf-8")
    if report.world.asked > 1:  # like train.py: a process group's destructor may never end
        sys.stdout.flush()
        leave(report.exit_code)
    return report.exit_code
