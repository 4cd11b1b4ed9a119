"""Prepare a run's data: fetch and encode it before the run, into shards too; list and prune the cache of examples."""

import argparse
import re
from pathlib import Path

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
    action = actions.add_parser(
        "encode",
        help="encode data.train into a folder of shards, for data that is too much to hold or to encode at a run's "
        "start; launched again, it goes on after the last complete shard; --section.key value as with train.py",
        allow_abbrev=False,
    )
    action.add_argument("recipe", metavar="RECIPE")
    action.add_argument("--output", metavar="FOLDER", required=True, help="the folder to write, for data.train")
    action.add_argument(
        "--shard_size", metavar="N", type=int, default=100_000, help="examples of a shard, at least; default: 100000"
    )
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
    """Stage or encode the data, or list the cache; print what was found or made, and where it is."""
    return {"stage": _stage, "encode": _encode, "cache": _cache}[arguments.action](arguments)


def _stage(arguments: argparse.Namespace) -> int:
    from onecurve.preflight import read

    checked = read([arguments.recipe, *arguments.overrides])
    # The recipe is valid: only now import what takes seconds
    hush_transformers()
    from onecurve.stage import stage

    for line in stage(checked):
        print(line, flush=True)  # noqa: T201
    return 0


def _encode(arguments: argparse.Namespace) -> int:
    if arguments.shard_size < 1:
        raise ConfigError(f"must be at least 1; got {arguments.shard_size}.", where="--shard_size")
    from onecurve.preflight import read

    checked = read([arguments.recipe, *arguments.overrides])
    hush_transformers()
    from onecurve.data.sharding import encode_shards
    from onecurve.model.reading import Reading

    recipe, task = checked.recipe, checked.task
    reading, folder = Reading.of(recipe, task), Path(arguments.output).expanduser()
    for line in encode_shards(recipe.data, task, reading, recipe.seed, folder, arguments.shard_size):
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
