"""Training data that is a folder of encoded shards: held against the run that reads it, and verified once."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from onecurve.config import SHARDS, DataSection, path_of, shards_folders
from onecurve.data.cache import get_or_write
from onecurve.data.cache_key import content_parts, names_of, sample_digest
from onecurve.data.encoder import Encoder
from onecurve.data.files import content_digest, file_stamp
from onecurve.data.selection import share
from onecurve.data.shards import ShardedExamples, ShardIndex
from onecurve.data.sources import settings_of
from onecurve.data.splits import Split
from onecurve.data.staging import check_room
from onecurve.errors import ConfigError, DataError
from onecurve.tasks.base import Annotates, RollsOut, Survey, Task

_COMPARED = ("columns", "on_bad_row", "on_long")
"""Settings of `data` that the recipe must have as they were; the others are of files that are not read."""
_WHAT = {
    "layout": "another version of onecurve",
    "data": "other rows",
    "tokenizer": "another tokenizer or chat template",
    "task": "another task",
    "encoder_version": "another version of this task",
    "task_code": "other code of this task",
    "survey": "other labels, or another order of them",
    "sample": "code that turns the same row into other tokens (of onecurve, transformers or tokenizers)",
}


def find_shards(settings: DataSection, task: Task) -> dict[str, ShardIndex]:
    """Return the index of each folder of shards that `data.train` names, by source; `""` where it has no names.

    Raises:
        ConfigError: A damaged or unfinished index, a recipe that cannot be trained from shards, or no room for what is
            copied of them.
    """
    found: dict[str, ShardIndex] = {}
    for name, folder in shards_folders(settings.train).items():
        check_shardable(settings, task)
        if idle := settings_of(settings, "train", name)[0] - {"columns"}:
            raise ConfigError(
                "has no effect: the source is encoded shards, which are read as they are. Remove it.",
                where=f"data.train.{name}.{min(idle)}",
            )
        found[name] = index = ShardIndex.read(folder)
        if not index.shards:
            raise ConfigError(
                f"the encoding of {index.encoding.spec!r} into '{folder}' has not finished.",
                where=f"data.train.{name}" if name else "data.train",
                fix="Run the same `onecurve data encode` again: it goes on with the next shard.",
            )
    if here := found and _here(settings):
        check_room(here, [index.shards for index in found.values()], settings.shuffle_window or 1)
    return found


def _here(settings: DataSection) -> Path | None:
    """Return where shards are copied to on this node."""
    return Path(settings.stage_to).expanduser() if settings.stage_to else None


def survey_of_all(shards: Mapping[str, ShardIndex], others: bool) -> Survey | None:
    """Return what the rows of all shards told; None where there are no shards.

    Args:
        shards: The indexes, by source.
        others: Whether there are sources of rows beside them.

    Raises:
        ConfigError: They were encoded with other labels, or have several heads and rows beside them.
    """
    surveys = {name: index.survey for name, index in shards.items()}
    for name, survey in surveys.items():
        first, known = next(iter(surveys.items()))
        if names_of(survey) != names_of(known):
            raise ConfigError(
                f"the sources {first} and {name} were encoded with other labels, or another order of them: "
                f"{', '.join(known.labels)}; and {', '.join(survey.labels)}.",
                where="data.train",
                fix="Encode all with the same labels in task.labels.",
            )
        if others and survey.heads:
            raise ConfigError(
                "some sources are encoded shards and some are rows, which is not done for a task of several heads.",
                where="data.train",
                fix="Encode all of them, or none.",
            )
    return reduce(_added, surveys.values()) if surveys else None


def _added(one: Survey, other: Survey) -> Survey:
    """Return what the rows of both told, whose names are the same."""
    counts = [a + b for a, b in zip(one.label_counts, other.label_counts, strict=False)]
    heads = {name: _added(head, other.heads[name]) for name, head in one.heads.items()}
    unseen = [name for name in one.unseen if name in other.unseen]
    return replace(one, label_counts=counts, unseen=unseen, heads=heads)


def check_shardable(settings: DataSection, task: Task) -> None:
    """Refuse a recipe whose training examples cannot be shards.

    Raises:
        ConfigError: It is one.
    """
    for split in ("eval", "test"):
        spec = getattr(settings, split)
        entries = [path_of(entry) for entry in spec.values()] if isinstance(spec, dict) else [spec]
        if any(share(entry) is not None for entry in entries):
            raise ConfigError(
                "is a share of the training rows, which encoded shards do not have.",
                where=f"data.{split}",
                fix="Name a file.",
            )
    most = settings.max_samples
    if most is not None and (not isinstance(most, dict) or "train" in most):
        raise ConfigError(
            "draws from all training rows at once, which is not done for encoded shards.",
            where="data.max_samples",
            fix="Limit other splits by name, such as {eval: 1000}.",
        )
    if task.media:
        raise ConfigError(
            "the examples of this task refer to files of images or sounds, which shards would not hold.",
            where="task.name",
        )
    if task.augmentation:
        raise ConfigError(
            "some of its settings change the texts of training examples, and shards hold tokens alone.",
            where="regularization",
            fix="Train from the rows.",
        )
    if isinstance(task, RollsOut):
        raise ConfigError(
            "completions are recorded by the row of their prompt, which shards do not tell.",
            where="task.name",
            fix="Train from the rows.",
        )
    if isinstance(task, Annotates) and task.annotations:
        raise ConfigError(
            "with these settings a reference model is asked about every example before step 1, which is not done for "
            "encoded shards.",
            where="task.name",
            fix="Train from the rows.",
        )


def sharded_split(
    name: str, index: ShardIndex, settings: DataSection, encoder: Encoder, processor: str, root: Path
) -> Split:
    """Return the training split, or the source of it, that a folder of shards holds.

    Args:
        name: Of the source; empty where it is the split.
        index: Of the folder.
        settings: The recipe's data section.
        encoder: Would encode rows as the recipe says.
        processor: The digest of what would read them.
        root: The cache folder, where it is noted that the shards were verified.

    Raises:
        ConfigError: They were encoded otherwise.
        DataError: Files are missing or are not as they were written.
    """
    _check_encoded_alike(index, settings_of(settings, "train", name)[1], encoder, processor)
    _verify(index, root)
    window, key = settings.shuffle_window, index.encoding.key
    if window:
        sizes = json.dumps([shard.examples for shard in index.shards])  # the order depends on them
        key = hashlib.blake2b(f"{key} {sizes}".encode(), digest_size=16).hexdigest()
    held = 2 * window if window else None  # of a step in two windows both are open
    examples = ShardedExamples(index.folder, index.shards, held, _here(settings))
    return Split(f"train/{name}" if name else "train", index.report, examples, index.columns, key=key)


def _check_encoded_alike(index: ShardIndex, settings: DataSection, encoder: Encoder, processor: str) -> None:
    then, task, reading = index.encoding.parts, encoder.task, encoder.reading
    survey = index.survey.in_model_order(reading.labels)
    sample = sample_digest(index.encoding.sample, encoder.encode_whole)
    now = content_parts(then["data"], sample, processor, task, survey, settings, reading.max_length)
    if told := next(differences(then, json.loads(json.dumps(now)), _COMPARED), None):
        raise ConfigError(
            f"the shards in '{index.folder}' were encoded with {told}.",
            where="data.train",
            fix="Train with what they were encoded with, or encode the rows again.",
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any], settings: Iterable[str]) -> Iterator[str]:
    """Say how two encodings differ, the cause before what follows from it.

    Args:
        then: What the shards were made from: `content_parts`.
        now: What they would be made from now.
        settings: Those of `data` that are compared.
    """
    for key in ("layout", "task", "encoder_version", "task_code"):
        if then.get(key) != now.get(key):
            yield f"{_WHAT[key]} ({then.get(key)}, and the recipe's is {now.get(key)})"
    for section, setting in (("task_settings", "task"), ("settings", "data")):
        names = settings if section == "settings" else sorted(then[section].keys() | now[section].keys())
        for name in names:
            before, after = (told[section].get(name) for told in (then, now))
            if before != after:
                yield f"{setting}.{name} {before!r}, and the recipe has {after!r}"
    if then["max_length"] != now["max_length"]:
        yield f"at most {then['max_length']} tokens an example (data.max_length), and here it is {now['max_length']}"
    yield from (_WHAT[key] for key in ("data", "tokenizer", "survey", "sample") if then[key] != now[key])


def _verify(index: ShardIndex, root: Path) -> None:
    """Compare every file with the index: sizes at each start, content where a file's stamp is not known yet."""

    def refuse(told: str) -> None:
        if told:
            raise DataError(
                f"{told}.",
                where="data.train",
                fix="Copy it again, or run the same `onecurve data encode` again, which makes what is missing.",
            )

    refuse(index.changed(index.shards))
    stamps = [file_stamp(index.folder / shard.name / name) for shard in index.shards for name in shard.files]
    told = json.dumps([str(index.folder.resolve()), content_digest([index.folder / SHARDS], ""), stamps])

    def verify(_: Path) -> dict[str, Any]:
        refuse(index.altered(index.shards))
        return {}

    key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    get_or_write(root, f"shards-{key}", verify, {"verified": str(index.folder)})
