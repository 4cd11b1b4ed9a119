"""Encoded shards: what is written, what is read back, a kill on the way, and what is refused before weights load."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onecurve.config import DataSection, Recipe
from onecurve.data import encoder, load_data, plan_run
from onecurve.data.sharded import check_shardable
from onecurve.data.sharding import encode_shards
from onecurve.data.shards import ShardedExamples, ShardIndex
from onecurve.errors import ConfigError, DataError, UserError
from onecurve.tasks import find_task
from onecurve.tasks.base import BadRow
from onecurve.tasks.text_classification import Task as TextClassification
from onecurve.tasks.text_classification import TextClassificationSettings
from tests.data.byte_level import LoggedTask, byte_tokenizer, is_for_a_split, labelled, load, write_jsonl
from tests.multilingual_models import FAMILIES
from tests.readings import ReadingOf, reading

PID = os.getpid()
TEXTS = [f"{'word ' * (1 + number * 7 % 11)}{number}" for number in range(23)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(encoder, "_PART_ROWS", 2)
    monkeypatch.setattr("onecurve.data.workers.num_cores", lambda: 1)


@pytest.fixture
def task():
    return TextClassification(TextClassificationSettings())


@pytest.fixture
def settings(tmp_path):
    rows = labelled(*TEXTS)
    return DataSection(train=write_jsonl(tmp_path / "train.jsonl", rows), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


def encode(settings, task, folder, size=4, tokenizer=None, **more):
    return list(encode_shards(settings, task, reading(tokenizer or byte_tokenizer(), **more), 0, folder, size))


def sharded(settings, folder, **more):
    return settings.model_copy(update={"train": str(folder), **more})


def recipe(**data):
    return Recipe.model_validate(
        {"output_dir": "-", "task": {"name": "text_classification"}, "model": {"path": "-"}}
        | {"data": {"train": "-"} | data, "train": {"global_batch_size": 6, "micro_batch_size": 2, "max_steps": 30}}
    )


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


# The same examples


class _Extra(TextClassification):
    """Some examples have a key of their own, of no example in the first shard and of all in another."""

    def encode(self, row, survey, reading, truncate):
        more = {"extra": 1} if row["text"] in TEXTS[5:13] else {}
        return [example | more for example in super().encode(row, survey, reading, truncate)]


def test_shards_hold_what_the_cache_holds_and_are_the_same_data(settings, folder):
    task = _Extra(TextClassificationSettings())
    told = encode(settings, task, folder)
    assert told[-1].startswith("6 shards, 23 examples, ") and told[0].startswith("shard-000000: 4 examples, ")
    rows, shards = load(settings, task), load(sharded(settings, folder), task)
    assert shards.train.take(range(23)) == rows.train.take(range(23))
    assert (shards.fingerprint, shards.survey, shards.max_length) == (rows.fingerprint, rows.survey, rows.max_length)
    assert (shards.train.report, shards.train.columns) == (rows.train.report, rows.train.columns)
    assert shards.label_counts().tolist() == rows.label_counts().tolist() == [12, 11]
    for name in ("lengths", "num_items", "num_tokens"):
        ours, theirs = getattr(shards.train, name), getattr(rows.train, name)
        ids = np.array([22, 3, 3, 0, 9])
        assert ours[ids].tolist() == theirs[ids].tolist() and ours[7] == theirs[7]
        assert (ours[ids].dtype, len(ours)) == (theirs.dtype, len(theirs))
    assert shards.train.num_tokens.sum() == rows.train.num_tokens.sum() and shards.train.num_items.sum() == 23
    assert shards.train.num_items.sum(0) == rows.train.num_items.sum(0) == 23
    ours, theirs = shards.train.examples, rows.train.examples
    assert isinstance(ours, ShardedExamples)
    assert (ours.lengths.max(), ours.lengths.argmax()) == (theirs.lengths.max(), theirs.lengths.argmax())
    assert ours.lengths.argmin() == theirs.lengths.argmin() == ours.short_and_middle()[0]
    assert sorted(ours.optional()) == sorted(theirs.optional()) == [0, 5]
    for count in (1, 4, 9, 23):
        assert ours.longest(count).tolist() == theirs.longest(count).tolist()


def test_without_a_window_the_plan_is_that_of_the_rows_and_so_is_one_window(settings, task, folder):
    encode(settings, task, folder)
    plans = [plan_run(load(settings, task).splits, recipe())]
    for window in (None, 6, 99, 2):
        data = load(sharded(settings, folder, shuffle_window=window), task)
        plans.append(plan_run(data.splits, recipe(shuffle_window=window)))
    rows, *alike, windows = [[(s.sample_digest, s.num_items) for s in plan.steps(1, 30)] for plan in plans]
    assert all(plan == rows for plan in alike)
    assert windows != rows and sorted(i for s in plans[-1].steps(1, 4) for i in s.sample_ids) == [*range(23)]


def test_only_the_shards_of_a_window_are_open(settings, task, folder):
    encode(settings, task, folder)
    data = load(sharded(settings, folder, shuffle_window=2), task)
    plan, examples = plan_run(data.splits, recipe(shuffle_window=2)), data.train.examples
    for step in plan.steps(1, 12):
        data.train.take(step.sample_ids)
        assert data.train.num_tokens[step.sample_ids].sum() > 0
    known = examples.shard.cache_info()
    assert known.maxsize == 4 and known.currsize == 4 and len(examples.shards) == 6
    assert known.misses <= 24, "shards are opened again and again"


def test_other_shards_or_windows_are_other_data_where_the_order_depends_on_them(settings, task, folder, tmp_path):
    encode(settings, task, folder)
    encode(settings, task, tmp_path / "larger", size=8)
    keys = {
        (size, window): load(sharded(settings, where, shuffle_window=window), task).fingerprint
        for size, where in ((4, folder), (8, tmp_path / "larger"))
        for window in (None, 2)
    }
    assert keys[4, None] == keys[8, None] and keys[4, 2] != keys[8, 2]


def test_dev_labels_are_held_against_the_shards(settings, task, folder, tmp_path):
    encode(settings, task, folder)
    dev = write_jsonl(tmp_path / "dev.jsonl", labelled("one", "two"))
    data = load(sharded(settings, folder, eval=dev), task)
    assert data.eval is not None and len(data.eval) == 2 and data.survey.labels == ["a", "b"]
    strange = write_jsonl(tmp_path / "strange.jsonl", [{"text": "x", "label": "unseen"}])
    with pytest.raises(DataError, match="unseen"):
        load(sharded(settings, folder, eval=strange), task)


# Sources of a mixture

SIZES = {"news": 23, "tweets": 11, "mail": 5}


@pytest.fixture
def sources(task, tmp_path):
    """Two sources that are shards, one of rows; and the same all of rows."""
    rows, mixed = {}, {}
    for number, (name, size) in enumerate(SIZES.items()):
        lines = labelled(*(f"{name} {'word ' * (1 + 3 * at % 7)}{at}" for at in range(size)))
        path = write_jsonl(tmp_path / f"{name}.jsonl", lines)
        rows[name] = {"path": path, "weight": (4, 2, 1)[number]}
        if name != "tweets":
            encode(DataSection(train=path, cache_dir=str(tmp_path / "cache")), task, tmp_path / name)
            path = str(tmp_path / name)
        mixed[name] = {"path": path, "weight": (4, 2, 1)[number]}
    cache = str(tmp_path / "cache")
    return lambda of, **more: DataSection(train={"rows": rows, "mixed": mixed}[of], cache_dir=cache, **more)


def unweighted(settings):
    return DataSection.model_validate(
        settings.model_dump() | {"train": {name: one.path for name, one in settings.train.items()}}
    )


def planned(settings, task):
    data = load(settings, task)
    return data, plan_run(data.splits, recipe(**settings.model_dump(exclude_defaults=True)))


@pytest.mark.parametrize("weighted", [True, False])
def test_a_mixture_of_shards_and_rows_is_that_of_their_rows(sources, task, weighted):
    change = (lambda settings: settings) if weighted else unweighted
    (ours, plan), (theirs, whole) = (planned(change(sources(of)), task) for of in ("mixed", "rows"))
    assert isinstance(ours.train.examples, ShardedExamples) and len(ours.train.examples.shards) == 9
    assert [part.title for part in ours.train.sets] == [*SIZES]
    assert ours.train.take(range(39)) == theirs.train.take(range(39))
    assert (ours.fingerprint, ours.survey, ours.train.report) == (
        theirs.fingerprint,
        theirs.survey,
        theirs.train.report,
    )
    assert ours.label_counts().tolist() == theirs.label_counts().tolist()
    assert ours.train.num_tokens.sum() == theirs.train.num_tokens.sum()
    assert ours.train.examples.longest(9).tolist() == theirs.train.examples.longest(9).tolist()
    for step in (1, 2, 7, 29, 400):
        assert plan.step(step).sample_digest == whole.step(step).sample_digest
        assert (plan.step(step).num_items, plan.step(step).seen) == (whole.step(step).num_items, whole.step(step).seen)


def test_in_windows_shares_are_exact_and_each_pass_over_a_source_has_each_example_once(sources, task):
    data, plan = planned(sources("mixed", shuffle_window=2), task)
    _, whole = planned(sources("mixed"), task)
    assert {*plan.mixture.windows} == {"news", "mail"}
    steps = list(plan.steps(1, 60))
    ids = np.concatenate([step.sample_ids for step in steps])
    passes = np.concatenate([step.sample_passes for step in steps])
    starts = np.cumsum([0, *SIZES.values()])
    owners = np.searchsorted(starts, ids, side="right") - 1
    for at in range(0, len(ids) - 6, 7):
        assert np.bincount(owners[at : at + 7], minlength=3).tolist() == [4, 2, 1]
    for source, size in enumerate(SIZES.values()):
        for number in range(int(passes[owners == source].max())):  # all but the last, which has not ended
            of_pass = ids[(owners == source) & (passes == number)]
            assert sorted(of_pass) == [*range(starts[source], starts[source] + size)]
    for number in (0, 1):
        own = ids[(owners == 0) & (passes == number)].tolist()
        assert own == plan.mixture.windows["news"].ids(0, 23, plan.seed, number).tolist()
        assert len({at // 4 for at in own[:7]}) == 2, "news has shards of 4, or 3: a window is two of them"
    assert [step.seen for step in steps] == [step.seen for step in whole.steps(1, 60)]
    assert steps[9].sample_digest != whole.step(10).sample_digest
    tweets = ids[owners == 1], np.concatenate([step.sample_ids for step in whole.steps(1, 60)])
    assert tweets[0].tolist() == [one for one in tweets[1] if starts[1] <= one < starts[2]], "of rows, shuffled whole"
    _, again = planned(sources("mixed", shuffle_window=2), task)
    assert again.step(43).sample_digest == steps[42].sample_digest, "seeking is iterating"
    rest = again.started_at(plan.position(17), None)
    assert [one.sample_digest for one in rest.steps(18, 30)] == [one.sample_digest for one in steps[17:30]]
    data.train.take(ids)
    assert data.train.examples.shard.cache_info().maxsize == 4 + 1 + 4


def test_one_window_of_all_shards_of_a_source_is_the_order_without_windows(sources, task):
    (_, whole), (_, plan) = (planned(sources("mixed", **more), task) for more in ({}, {"shuffle_window": 6}))
    digests = [[step.sample_digest for step in one.steps(1, 40)] for one in (whole, plan)]
    assert digests[0] == digests[1]


def test_sources_in_windows_without_weights_have_each_example_once_a_pass(sources, task):
    data, plan = planned(unweighted(sources("mixed", shuffle_window=2)), task)
    assert plan.mixture is None and len(plan.windows.sizes) == 9
    ids = np.concatenate([step.sample_ids for step in plan.steps(1, plan.steps_per_epoch)])
    assert sorted(ids.tolist()) == [*range(39)]
    assert load(sources("mixed"), task).fingerprint != data.fingerprint, "the order depends on the shards' sizes"


def test_sources_encoded_with_other_labels_are_refused(sources, task, tmp_path):
    strange = write_jsonl(tmp_path / "strange.jsonl", [{"text": "x", "label": "z"}, {"text": "y", "label": "a"}])
    encode(DataSection(train=strange, cache_dir=str(tmp_path / "cache")), task, tmp_path / "strange")
    train = {"news": str(tmp_path / "news"), "web": str(tmp_path / "strange")}
    with pytest.raises(ConfigError, match=r"news and web were encoded with other labels.*: a, b; and a, z"):
        load(DataSection(train=train, cache_dir=str(tmp_path / "cache")), task)
    train["web"] = strange
    with pytest.raises(DataError, match=r"strange.jsonl.*'z'.*encode them with all of them in task.labels"):
        load(DataSection(train=train, cache_dir=str(tmp_path / "cache")), task)


def test_heads_encoded_into_shards_beside_rows_are_refused(sources, task, tmp_path):
    for name in ("news", "mail"):
        index = ShardIndex.read(tmp_path / name)
        survey = {**index.encoding.survey, "heads": {"topic": index.encoding.survey}}
        replace(index, encoding=replace(index.encoding, survey=survey)).write()
    with pytest.raises(ConfigError, match=r"some sources are encoded shards and some are rows.*several heads") as told:
        load(sources("mixed"), task)
    assert told.value.where == "data.train" and "Encode all of them, or none" in told.value.fix


def test_an_unfinished_source_is_named(sources, task, tmp_path):
    index = ShardIndex.read(tmp_path / "mail")
    replace(index, shards=()).write()
    with pytest.raises(ConfigError, match="has not finished") as refused:
        load(sources("mixed"), task)
    assert refused.value.where == "data.train.mail"


# Interrupted


class _Dies(LoggedTask):
    """Ends every process but this one at a text, as a kill does."""

    def encode(self, row, survey, reading, truncate):
        if row["text"] == TEXTS[13] and is_for_a_split() and os.getpid() != PID:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(row, survey, reading, truncate)


def test_killed_while_encoding_it_goes_on_with_the_next_shard(settings, folder, tmp_path):
    logged = _Dies(tmp_path / "log")
    if not (child := os.fork()):
        try:
            encode(settings, logged, folder)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert sorted(path.name for path in folder.glob("shard-*")) == [
        *(f"shard-{number:06d}" for number in range(3)),
        "shard-000003.incomplete",
    ]
    with pytest.raises(ConfigError, match="has not finished"):
        load(sharded(settings, folder), logged)
    (tmp_path / "log").unlink()
    told = encode(settings, logged, folder)
    assert told[0] == "3 shards, 12 examples: already there" and logged.written() == TEXTS[12:]
    encode(settings, logged, tmp_path / "whole")
    assert content(folder) == content(tmp_path / "whole"), "not what an encoding without a kill writes"
    assert not list(folder.glob("*.incomplete"))


def test_a_damaged_shard_is_made_again_by_the_same_command(settings, task, folder):
    encode(settings, task, folder)
    whole = content(folder)
    (path,) = (folder / "shard-000002").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"shard-000002.* has .* bytes, and the index says"):
        load(sharded(settings, folder), task)
    encode(settings, task, folder)
    assert content(folder) == whole


def test_content_that_is_not_what_was_written_is_made_again_by_the_same_command(settings, task, folder):
    encode(settings, task, folder)
    whole = content(folder)
    (path,) = (folder / "shard-000002").glob("*.arrow")
    told = bytearray(path.read_bytes())
    told[len(told) // 2] ^= 1
    path.write_bytes(told)
    assert encode(settings, task, folder)[0] == "2 shards, 8 examples: already there"
    assert content(folder) == whole


# Refused


def test_a_tokenizer_that_encoding_changes_is_the_same_one_in_the_run(settings, folder, tmp_path):
    tokenizer = lambda: FAMILIES["mbart"][0](tmp_path)[0]  # noqa: E731
    kind = find_task("seq2seq_lm")
    task = kind(kind.Settings(source_lang="en_XX", target_lang="de_DE"))
    rows = [{"source": "the dog sleeps", "target": "der Hund schläft"} for _ in range(6)]
    settings = settings.model_copy(update={"train": write_jsonl(tmp_path / "pairs.jsonl", rows)})
    config = SimpleNamespace(is_encoder_decoder=True, model_type="mbart")
    list(encode_shards(settings, task, ReadingOf(tokenizer, config=config), 0, folder, 4))
    data = load_data(sharded(settings, folder), task, ReadingOf(tokenizer, config=config), 0)
    assert len(data.train) == 6


def test_a_changed_or_missing_shard_is_refused_and_a_verified_one_is_not_read_again(
    settings, task, folder, monkeypatch
):
    encode(settings, task, folder)
    load(sharded(settings, folder), task)
    with monkeypatch.context() as patch:
        patch.setattr(ShardIndex, "altered", lambda *_: pytest.fail("read again"))
        load(sharded(settings, folder), task)
    (path,) = (folder / "shard-000004").glob("*.arrow")
    told = bytearray(path.read_bytes())
    told[len(told) // 2] ^= 1
    path.write_bytes(told)
    with pytest.raises(DataError, match=r"shard-000004.* does not hold what was written"):
        load(sharded(settings, folder), task)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-000004.*No such file") as refused:
        load(sharded(settings, folder), task)
    assert refused.value.where == "data.train"


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "cannot be read"), ('{"layout": 9}', r"another version of onecurve \(layout 9")],
    ids=["cut", "layout"],
)
def test_an_index_that_cannot_be_read_is_refused(settings, task, folder, text, told):
    encode(settings, task, folder)
    (folder / "shards.json").write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        load(sharded(settings, folder), task)
    assert refused.value.where == str(folder / "shards.json")


class _Otherwise(TextClassification):
    def encode(self, row, survey, reading, truncate):
        return super().encode({**row, "text": row["text"] + "!"}, survey, reading, truncate)


_Otherwise.__module__, _Otherwise.__qualname__ = TextClassification.__module__, TextClassification.__qualname__


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokenizer": {"eos_token": "a"}}, "another tokenizer or chat template"),
        ({"max_length": 50}, r"at most 100 tokens an example \(data.max_length\), and here it is 50"),
        ({"data": {"on_long": "truncate"}}, "data.on_long 'error', and the recipe has 'truncate'"),
        ({"data": {"columns": {"text": "body"}}}, r"data.columns {}, and the recipe has {'text': 'body'}"),
        ({"task": {"labels": ["b", "a"]}}, r"task.labels None, and the recipe has \['b', 'a'\]"),
        ({"kind": _Otherwise}, "code that turns the same row into other tokens"),
    ],
    ids=["tokenizer", "max_length", "on_long", "columns", "labels", "code"],
)
def test_what_would_encode_otherwise_is_refused_with_the_reason(settings, task, folder, change, told):
    encode(settings, task, folder)
    kind = change.get("kind", TextClassification)
    other = kind(TextClassificationSettings(**change.get("task", {})))
    with pytest.raises(ConfigError, match=told):
        load(
            sharded(settings, folder, **change.get("data", {})),
            other,
            byte_tokenizer(**change.get("tokenizer", {})),
            max_length=change.get("max_length", 100),
        )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"eval": "5%"}, "is a share of the training rows"),
        ({"max_samples": 7}, "draws from all training rows at once"),
        ({"eval": "SHARDS"}, "holds encoded shards, which can only be data.train or one of its"),
        ({"train": ["SHARDS", "train.jsonl"]}, "holds encoded shards, which can only be data.train or one"),
        ({"train": {"news": {"path": "SHARDS", "max_samples": 3}}}, r"^data.train.news.max_samples: has no effect"),
        ({"train": {"news": {"path": "SHARDS", "columns": {"text": "body"}}}}, r"data.columns {}, and the recipe has"),
    ],
    ids=["share", "max_samples", "eval", "list", "own", "columns"],
)
def test_what_shards_cannot_be_is_refused(settings, task, folder, change, told):
    encode(settings, task, folder)
    named = json.loads(json.dumps({"train": str(folder)} | change).replace("SHARDS", str(folder)))
    with pytest.raises(UserError, match=told):
        load(DataSection(**named, cache_dir=settings.cache_dir), task)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dpo", "a reference model is asked"),
        ("grpo", "by the row of their prompt"),
        ("image_classification", "files of images or sounds"),
    ],
)
def test_tasks_whose_examples_are_not_all_there_are_refused(name, told):
    kind = find_task(name)
    with pytest.raises(ConfigError, match=told):
        check_shardable(DataSection(train="rows.jsonl"), kind(kind.Settings()))


def test_a_folder_with_something_else_in_it_is_not_written_to(settings, task, folder, tmp_path):
    encode(settings, task, folder)
    with pytest.raises(ConfigError, match="encoded with --shard_size 4"):
        encode(settings, task, folder, size=5)
    with pytest.raises(ConfigError, match="at most 100 tokens"):
        encode(settings, task, folder, max_length=60)
    with pytest.raises(ConfigError, match=r"is not empty: it has cache"):
        encode(settings, task, tmp_path)
    with pytest.raises(ConfigError, match="is a folder of encoded shards"):
        encode(sharded(settings, folder), task, tmp_path / "again")


class _Picky(TextClassification):
    def encode(self, row: Any, survey: Any, reading: Any, truncate: bool) -> list[dict[str, Any]]:
        if row["text"] in (TEXTS[3], TEXTS[20]):
            raise BadRow("is not liked")
        return super().encode(row, survey, reading, truncate)


def test_rows_left_out_are_counted_over_all_shards(settings, folder, tmp_path):
    task, skipping = _Picky(TextClassificationSettings()), settings.model_copy(update={"on_bad_row": "skip"})
    with pytest.raises(DataError, match="is not liked"):
        encode(settings, task, tmp_path / "refused")
    encode(skipping.model_copy(update={"on_long": "drop"}), task, folder, max_length=50)
    data = load(sharded(skipping, folder, on_long="drop"), task, max_length=50)
    rows = load(skipping.model_copy(update={"on_long": "drop"}), task, max_length=50)
    assert data.train.report == replace(rows.train.report) and data.train.report.skipped == 2
    assert data.train.report.dropped > 0 and len(data.train) == 21 - data.train.report.dropped
    assert Path(str(settings.cache_dir)).is_dir()
