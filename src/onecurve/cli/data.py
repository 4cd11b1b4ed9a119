"""Prepare a run's data: fetch and encode it before the run; list and prune the cache of encoded examples."""

import argparse
import re

from onecurve.errors import ConfigError
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
    action = actions.add_parser("cache", help="list the encoded examples that are kept", allow_abbrev=False)
    action.add_argument("--cache_dir", metavar="FOLDER", help="as data.cache_dir; default: the user's cache directory")
    action.add_argument(
        "--prune", action="store_true", help="remove what killed runs left incomplete, and what these two say"
    )
    action.add_argument("--older_than", metavar="TIME", help="not used for so long, such as 12h, 30d or 8w")
    action.add_argument(
        "--max_size", metavar="SIZE", help="keep what was used last up to this size, such as 500M or 20G"
    )


def run(arguments: argparse.Namespace) -> int:
    """Stage the data, or list the cache; print what was found and where it is."""
    return {"stage": _stage, "cache": _cache}[arguments.action](arguments)


def _stage(arguments: argparse.Namespace) -> int:
    from onecurve.preflight import read

    checked = read([arguments.recipe, *arguments.overrides])
    # The recipe is valid: only now import what takes seconds
    hush_transformers()
    from onecurve.stage import stage

    for line in stage(checked):
        print(line, flush=True)  # noqa: T201
    return 0


_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"M": 10**6, "G": 10**9, "T": 10**12}


def _cache(arguments: argparse.Namespace) -> int:
    if arguments.overrides:
        raise ConfigError(f"unrecognized arguments: {' '.join(arguments.overrides)}.")
    older_than = _amount("--older_than", arguments.older_than, _SECONDS)
    max_size = _amount("--max_size", arguments.max_size, _BYTES)
    if not arguments.prune and (older_than, max_size) != (None, None):
        raise ConfigError("--older_than and --max_size say what --prune removes.", fix="Add --prune.")
    from onecurve.data.cache import cache_root
    from onecurve.data.cache_listing import entries, prune

    root = cache_root(arguments.cache_dir)
    found = list(prune(root, older_than, max_size)) if arguments.prune else entries(root)
    for entry in found:
        print(f"{entry.size / 1e6:>10,.1f} MB  {entry.age / 86400:>6.1f} days  {entry.about}  {entry.folder.name}")  # noqa: T201
    total = sum(entry.size for entry in found) / 1e6
    print(f"{len(found)} {'removed' if arguments.prune else 'entries'}, {total:,.1f} MB, in {root}")  # noqa: T201
    return 0


def _amount(flag: str, value: str | None, units: dict[str, int]) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)([{''.join(units)}])", value)
    if not match:
        raise ConfigError(f"must be a number with {', '.join(units)}; got {value!r}.", where=flag)
    return round(float(match[1]) * units[match[2]])
