"""From rows to examples: each split is checked, encoded once, and then read from the cache."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from onecurve.config import DataSection, refuse_without_effect
from onecurve.data.cache import cache_root, get_or_write
from onecurve.data.cache_key import content_key, content_parts, located, processor_digest, sample_digest, with_texts
from onecurve.data.checked import check_once
from onecurve.data.checking import Report, RowChecker
from onecurve.data.collation import Collation
from onecurve.data.collation_workers import CollationWorkers, num_workers
from onecurve.data.encoder import Encoder, SplitEncoding
from onecurve.data.examples import Examples
from onecurve.data.prompts import read_prompts
from onecurve.data.sharded import find_shards, sharded_split, survey_of_all
from onecurve.data.sources import open_splits, refuse_unread
from onecurve.data.splits import Data, Split, joined
from onecurve.errors import DataError
from onecurve.tasks.base import Annotates, Mismatches, Processing, Recognises, Rewords, RollsOut, Task


def load_data(settings: DataSection, task: Task, reading: Processing, seed: int) -> Data:
    """Check every row of every split, then read its examples from the cache, or encode them; shards are read.

    Args:
        settings: The recipe's data section.
        task: Knows what a row must hold and how it is encoded.
        reading: Loads the processor when it is first asked for: once every row is known to be good.
        seed: Of the run; draws the rows of a share and of `data.max_samples`.

    Raises:
        UserError: An invalid setting, file, row or label; a cache that cannot be written.
    """
    shapes = task.shapes.values() if isinstance(task, Recognises) else ()
    shards = find_shards(settings, task)
    of_rows = _without(settings, shards)
    known = survey_of_all(shards, others=of_rows.train is not None)
    sources = open_splits(of_rows, task.columns, shapes, task.media, seed)
    refuse_unread(settings, sources.values())
    refuse_without_effect({"task": task.settings}, task.without_effect(reading))
    checkers = {name: RowChecker(source, task, settings.on_bad_row == "skip") for name, source in sources.items()}
    stamps = {name: checker.source.stamp() for name, checker in checkers.items()}
    root = cache_root(settings.cache_dir)
    checked = check_once(root, checkers, task, known)
    survey = checked.survey.in_model_order(reading.labels)
    encoder = Encoder(task, survey, reading, settings.on_long, settings.on_bad_row)
    processor_hash = processor_digest(reading.processor)  # before any call: a tokenizer remembers its latest one
    if isinstance(task, Annotates):
        task.check_other_model(reading, survey, [row for rows in checked.samples.values() for row in rows])
    parts, keys, hits = {}, {}, []
    for name, index in shards.items():
        one = sharded_split(name, index, settings, encoder, processor_hash, root)
        parts[one.name] = one
    for name, checker in checkers.items():
        hashes = checked.digests[name], sample_digest(checked.samples[name], encoder.encode_whole), processor_hash
        told = content_parts(*hashes, task, survey, checker.source.settings, reading.max_length)
        training = checker.source.split == "train"
        texts = task.reworded if training and task.augmentation and isinstance(task, Rewords) else ()
        keys[name] = content_key(told)  # texts that are kept change no example: what changes them has keys of its own
        writing = SplitEncoding(replace(encoder, texts=texts), checker, None if training else survey, stamps[name])
        about = {"split": name, "data": checker.source.spec, "task": type(task).__module__}
        key = located(with_texts(keys[name], texts), checker.source.location())
        entry = get_or_write(root, key, writing.write, about)
        report = checked.reports[name].add(Report(**entry.counts))
        examples, source = Examples(entry.folder), checker.source
        if isinstance(task, Mismatches) and len(examples) < 2:
            raise DataError(
                f"'{source.spec}' has one example, and each is also read with another one's answer.",
                where=source.key,
                fix="Add rows, or put them together with those of another source.",
            )
        prompts = read_prompts(source, examples, task, survey, reading) if not training else []
        each = task.completions if isinstance(task, RollsOut) and training else 1
        growth = int(task.drawing(training)["max_new_tokens"]) if isinstance(task, RollsOut) else 0
        one = Split(name, report, examples, source.use, source, stamps[name], prompts, key=keys[name])
        parts[name] = replace(one, each=each, growth=growth)
        hits.append(entry.is_hit)
    order = [f"train/{name}" for name in settings.names("train")]
    parts = {name: parts[name] for name in [*order, *(name for name in parts if name not in order)]}
    splits = _join(parts)
    if count := num_workers(settings.workers, task):
        # Training draws from all of its sources at once, and each set is scored apart
        loaded = {"train": splits["train"]} | {n: part for n, part in parts.items() if not n.startswith("train")}
        workers = CollationWorkers(count, {name: Collation(one, task, reading) for name, one in loaded.items()})
        splits = _join({name: replace(one, workers=workers) for name, one in parts.items()})
    return Data(
        train=splits["train"],
        eval=splits.get("eval"),
        test=splits.get("test"),
        survey=survey,
        fingerprint=splits["train"].key,
        max_length=reading.max_length,
        cached=all(hits),
    )


def _without(settings: DataSection, sources: Collection[str]) -> DataSection:
    """Return the settings without these training sources; `""` is the only one, where it has no name."""
    if not sources:
        return settings
    left = {name: settings.entry("train", name) for name in settings.names("train") if name not in sources}
    return settings.model_copy(update={"train": left or None})


def _join(parts: Mapping[str, Split]) -> dict[str, Split]:
    of_splits: dict[str, list[Split]] = {}
    for name, part in parts.items():
        of_splits.setdefault(name.partition("/")[0], []).append(part)
    return {name: joined(name, together) for name, together in of_splits.items()}
