"""Prepare a run's data: fetch and encode it before the run."""

import argparse

from onecurve.machine.log_noise import hush_transformers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(overrides=[])
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser(
        "stage",
        help="fetch model, tokenizer and data sets from the hub and encode the examples, so that the run works with "
        "HF_HUB_OFFLINE=1 on machines without a network that share these caches; --section.key value as with train.py",
        allow_abbrev=False,
    )
    action.add_argument("recipe", metavar="RECIPE")


def run(arguments: argparse.Namespace) -> int:
    """Stage the data; print what was found or fetched and where it is."""
    return {"stage": _stage}[arguments.action](arguments)


def _stage(arguments: argparse.Namespace) -> int:
    from onecurve.preflight import read

    checked = read([arguments.recipe, *arguments.overrides])
    # The recipe is valid: only now import what takes seconds
    hush_transformers()
    from onecurve.stage import stage

    for line in stage(checked):
        print(line, flush=True)  # noqa: T201
    return 0
