"""Encodes training rows into a folder of shards: each is there whole or not at all, and a killed encoding goes on."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from onecurve.config import SHARDS, DataSection, refuse_without_effect, shards_folder
from onecurve.data.cache import cache_root
from onecurve.data.cache_key import content_key, content_parts, processor_digest, sample_digest
from onecurve.data.checked import Checked, check_once
from onecurve.data.checking import Report, RowChecker
from onecurve.data.encoder import Encoder, Part, SplitEncoding
from onecurve.data.examples import write_batches
from onecurve.data.shard import Shard
from onecurve.data.sharded import check_shardable, differences
from onecurve.data.shards import Encoding, ShardIndex
from onecurve.data.sources import Source, open_splits, refuse_unread
from onecurve.errors import ConfigError, LaunchError
from onecurve.machine.atomic_write import write_atomically
from onecurve.tasks.base import Processing, Recognises, Row, Task

_SHARD = "shard.json"
"""What the index will say of a shard; with it a shard's folder is complete."""
_LOCK = ".lock"


def encode_shards(
    settings: DataSection, task: Task, reading: Processing, seed: int, folder: Path, shard_size: int
) -> Iterator[str]:
    """Encode `data.train` into a folder, and yield a line about each shard.

    A shard ends with the first part of the rows that fills it. Shards that are there already are kept.

    Args:
        settings: The recipe's data section.
        task: Knows what a row must hold and how it is encoded.
        reading: Loads the processor when it is first asked for: once every row is known to be good.
        seed: Of the run.
        folder: To write; new, empty, or of this encoding.
        shard_size: Examples of a shard, at least.

    Raises:
        UserError: An invalid setting, file, row or label, data that cannot be shards, or a folder that holds others.
    """
    if isinstance(settings.train, dict) or shards_folder(settings.train):
        what = "names several sources" if isinstance(settings.train, dict) else "is a folder of encoded shards"
        raise ConfigError(f"{what}; one source of rows is encoded.", where="data.train", fix="Name a file or a list.")
    check_shardable(settings, task)
    shapes = task.shapes.values() if isinstance(task, Recognises) else ()
    sources = open_splits(settings, task.columns, shapes, task.media, seed)
    refuse_unread(settings, sources.values())
    refuse_without_effect({"task": task.settings}, task.without_effect(reading))
    checker = RowChecker(sources["train"], task, settings.on_bad_row == "skip")
    stamp = checker.source.stamp()
    checked = check_once(cache_root(settings.cache_dir), {"train": checker}, task)
    survey = checked.survey.in_model_order(reading.labels)
    encoder = Encoder(task, survey, reading, settings.on_long, settings.on_bad_row)
    processor_hash = processor_digest(reading.processor)  # before any call, as in a run
    encoding = _encoding(checked, encoder, processor_hash, checker.source, shard_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK, timeout=0):
            index = ShardIndex(folder, encoding, checked.reports["train"])
            yield from _write(index, SplitEncoding(encoder, checker, None, stamp))
    except Timeout:
        raise ConfigError(f"another process encodes into '{folder}'.", where="--output") from None
    except (OSError, NotImplementedError) as error:  # the second: a file system without locks
        raise LaunchError(f"shards cannot be written to '{folder}': {error}.", where="--output") from None


def _encoding(checked: Checked, encoder: Encoder, processor: str, source: Source, shard_size: int) -> Encoding:
    sample = [row for row in checked.samples["train"] if _is_plain(row)]
    parts = content_parts(
        checked.digests["train"],
        sample_digest(sample, encoder.encode_whole),
        processor,
        encoder.task,
        encoder.survey,
        source.settings,
        encoder.reading.max_length,
    )
    parts = json.loads(json.dumps(parts))
    columns = asdict(source.use) | {"known": sorted(source.use.known)}
    return Encoding(content_key(parts), parts, sample, asdict(encoder.survey), columns, source.spec, shard_size)


def _is_plain(row: Row) -> bool:
    """Whether JSON gives a row back as it is; dates and bytes, which Parquet has, it does not."""
    try:
        return bool(json.loads(json.dumps(row)) == row)
    except (TypeError, ValueError):
        return False


def _write(index: ShardIndex, writing: SplitEncoding) -> Iterator[str]:
    folder, size = index.folder, index.encoding.shard_size
    _check_folder(index)
    done = _complete(index)
    if done:
        yield f"{_told(done)}: already there"
    if not (folder / SHARDS).is_file() or len(done) < len(ShardIndex.read(folder).shards):
        index.write()  # whose shards these are; and that there are not all of them
    rest = Report()
    with closing(writing.parts(sum(shard.rows for shard in done))) as parts:
        while True:
            filling = _Filling()
            shard = _write_shard(folder, f"shard-{len(done):06d}", filling, filling.batches(parts, size))
            if shard is None:  # what was left gave no example
                rest = filling.report
                break
            done.append(shard)
            yield f"{shard.name}: {shard.examples:,} examples, {shard.num_tokens:,} tokens"
    report = reduce(Report.add, (Report(**shard.report) for shard in done), index.report).add(rest)
    examples = sum(shard.examples for shard in done)
    writing.check_written(examples, report)
    replace(index, report=report, shards=tuple(done)).write()
    yield f"{_told(done)}, {sum(shard.num_tokens for shard in done):,} tokens in {folder}"


def _told(shards: list[Shard]) -> str:
    return f"{len(shards)} shard{'s' * (len(shards) != 1)}, {sum(shard.examples for shard in shards):,} examples"


@dataclass
class _Filling:
    """What one shard has been given."""

    rows: int = 0
    examples: int = 0
    report: Report = field(default_factory=Report)

    def batches(self, parts: Iterator[Part], size: int) -> Iterator[pa.RecordBatch]:
        for part in parts:
            self.rows += part.num_rows
            self.report = self.report.add(part.report)
            self.examples += sum(map(len, part.batches))
            yield from part.batches
            if self.examples >= size:
                return


def _write_shard(folder: Path, name: str, filling: _Filling, batches: Iterator[pa.RecordBatch]) -> Shard | None:
    """Write one shard; a reader finds all of it or nothing. Return None where there is no example."""
    unfinished = folder / f"{name}.incomplete"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    if not write_batches(unfinished, batches):
        unfinished.rmdir()
        return None
    for path in unfinished.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    shard = Shard.of(unfinished, name, filling.rows, filling.report)
    write_atomically(unfinished / _SHARD, json.dumps(asdict(shard)))
    shutil.rmtree(folder / name, ignore_errors=True)  # damaged
    unfinished.rename(folder / name)
    return shard


def _check_folder(index: ShardIndex) -> None:
    """Refuse a folder that holds anything but shards of this encoding.

    Raises:
        ConfigError: It does.
    """
    folder = index.folder
    if not (folder / SHARDS).is_file():
        if others := sorted(path.name for path in folder.iterdir() if path.name not in (_LOCK, f"{SHARDS}.incomplete")):
            raise ConfigError(
                f"'{folder}' is not empty: it has {others[0]}.", where="--output", fix="Name a new folder."
            )
        return
    earlier, now = ShardIndex.read(folder).encoding, index.encoding
    told = next(differences(earlier.parts, now.parts, earlier.parts["settings"]), "")
    if earlier.shard_size != now.shard_size:
        told = told or f"--shard_size {earlier.shard_size}"
    if told:
        raise ConfigError(
            f"'{folder}' holds shards of {earlier.spec!r} that were encoded with {told}.",
            where="--output",
            fix="Name a new folder.",
        )


def _complete(index: ShardIndex) -> list[Shard]:
    """Return the shards that are there as they were written, up to the first that is not. Reads every byte of them."""
    found: list[Shard] = []
    while True:
        path = index.folder / f"shard-{len(found):06d}" / _SHARD
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            shard = Shard(**values)
        except (FileNotFoundError, ValueError, TypeError):
            return found
        if index.changed([shard]) or index.altered([shard]):
            return found
        found.append(shard)
