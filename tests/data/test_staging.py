"""Shards on a disk of the node's own: what is read there, how much is there, and what goes wrong."""

import pickle
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from onecurve.config import DataSection, Recipe
from onecurve.data import encoder, load_data, plan_run
from onecurve.data.sharding import encode_shards
from onecurve.data.shards import ShardIndex
from onecurve.data.staging import Staging
from onecurve.errors import ConfigError
from onecurve.tasks.text_classification import Task, TextClassificationSettings
from tests.data.byte_level import byte_tokenizer, labelled, write_jsonl
from tests.readings import ReadingOf, reading

SIZE, WINDOW, SHARDS = 29, 2, 10
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(encoder, "_PART_ROWS", 1)
    monkeypatch.setattr("onecurve.data.workers.num_cores", lambda: 1)


@pytest.fixture
def task():
    return Task(TextClassificationSettings())


@pytest.fixture
def settings(task, tmp_path):
    """Ten shards of three texts; the last has two."""
    rows = write_jsonl(
        tmp_path / "rows.jsonl", labelled(*(f"{'word ' * (number % 5)}{number}" for number in range(SIZE)))
    )
    cache = str(tmp_path / "cache")
    for _ in encode_shards(
        DataSection(train=rows, cache_dir=cache), task, reading(byte_tokenizer()), 0, tmp_path / "shards", 3
    ):
        pass
    return DataSection(train=str(tmp_path / "shards"), cache_dir=cache, shuffle_window=WINDOW)


def planned(settings, task):
    data = load_data(settings, task, ReadingOf(byte_tokenizer, 100), 0)
    recipe = Recipe.model_validate(
        {
            "output_dir": "-",
            "task": {"name": "text_classification"},
            "model": {"path": "-"},
            "data": settings.model_dump(exclude_defaults=True),
            "train": {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": 40},
        }
    )
    return data, plan_run(data.splits, recipe)


def staged(settings, folder):
    return settings.model_copy(update={"stage_to": str(folder)})


def finish():
    """Wait for what is copied ahead."""
    for thread in threading.enumerate():
        if thread.name == "staging":
            thread.join()


def copies(folder):
    return {path.name.rpartition("-")[0] for path in folder.glob("shard-*")}


def test_it_is_the_same_data_and_four_windows_are_there_at_most(settings, task, tmp_path):
    here = tmp_path / "node" / "disk"
    (data, plan), (plain, same) = planned(staged(settings, here), task), planned(settings, task)
    most, seen, from_copies = 0, set(), 0
    for number in range(1, 41):
        step, other = plan.step(number), same.step(number)
        assert step.sample_digest == other.sample_digest
        finish()
        most, seen = max(most, len(copies(here))), seen | copies(here)
        assert data.train.take(step.sample_ids) == plain.train.take(step.sample_ids)
        assert step.num_items == other.num_items
        _, owners = data.train.examples.placed(step.sample_ids)
        from_copies += sum(data.train.examples.shard(owner).folder.parent == here for owner in owners.tolist())
    assert WINDOW < most <= 4 * WINDOW < SHARDS and len(seen) == SHARDS
    assert from_copies > 0.8 * 40 * 29 / 8, "copies are made and not read"
    assert not [*here.glob("*.incomplete")]
    assert (data.fingerprint, data.label_counts().tolist()) == (plain.fingerprint, plain.label_counts().tolist())


def test_the_next_window_is_copied_while_one_is_read(settings, task, tmp_path):
    _, plan = planned(staged(settings, tmp_path / "here"), task)
    plan.windows.ids(0, 2, plan.seed, 0)
    finish()
    members = plan.windows._pass(plan.seed, 0)[0]
    assert copies(tmp_path / "here") == {f"shard-{number:06d}" for number in np.concatenate(members[:2])}
    plan.step(plan.steps_per_epoch)
    finish()
    wanted = {f"shard-{number:06d}" for number in [*members[-1], *plan.windows._pass(plan.seed, 1)[0][0]]}
    assert copies(tmp_path / "here") >= wanted, "the next pass's first window"


def test_what_is_not_there_or_not_whole_is_read_where_it_lies(settings, task, tmp_path):
    here = tmp_path / "here"
    plain, _ = planned(settings, task)
    data, _ = planned(staged(settings, here), task)
    for number in range(SHARDS):
        assert data.train.examples.shard(number).folder.parent == tmp_path / "shards"
    data.train.examples.staging.ahead(range(SHARDS))
    finish()
    names = data.train.examples.staging.names
    for number, damage in enumerate((shutil.rmtree, empty, cut, longer)):
        damage(here / names[number])
    again, _ = planned(staged(settings, here), task)
    where = [again.train.examples.shard(number).folder.parent for number in range(SHARDS)]
    assert where == [tmp_path / "shards"] * 4 + [here] * (SHARDS - 4)
    assert again.train.take(range(SIZE)) == plain.train.take(range(SIZE))


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def cut(folder):
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-9])


def longer(folder):
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes() + b"x")


def test_what_is_there_is_not_copied_again(settings, task, tmp_path, monkeypatch):
    here = tmp_path / "here"
    staging = planned(staged(settings, here), task)[0].train.examples.staging
    (here / f"{staging.names[3]}.incomplete").mkdir(parents=True)  # of a run that was killed
    (here / f"{staging.names[3]}.incomplete" / "examples-000000.arrow").write_bytes(b"half")
    staging.ahead([3, 5])
    finish()
    assert copies(here) == {"shard-000003", "shard-000005"} and not [*here.glob("*.incomplete")]
    copied, copyfile = [], shutil.copyfile
    monkeypatch.setattr(
        "onecurve.data.staging.shutil.copyfile", lambda *paths: (copied.append(paths[0]), copyfile(*paths))
    )
    planned(staged(settings, here), task)[0].train.examples.staging.ahead([5, 3, 1])
    finish()
    assert [path.parent.name for path in copied] == ["shard-000001"]


def test_one_rank_of_a_node_copies(settings, task, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    staging = planned(staged(settings, tmp_path / "here"), task)[0].train.examples.staging
    staging.ahead([1])
    finish()
    assert not copies(tmp_path / "here")
    monkeypatch.setenv("LOCAL_RANK", "0")
    staging.ahead([1])
    finish()
    assert copies(tmp_path / "here") == {"shard-000001"}


def test_a_worker_process_reads_the_copies(settings, task, tmp_path):
    examples = planned(staged(settings, tmp_path / "here"), task)[0].train.examples
    examples.staging.ahead([1])
    finish()
    there = pickle.loads(pickle.dumps(examples))
    assert there[3] == examples[3] and there.shard(1).folder.parent == tmp_path / "here"


@pytest.mark.parametrize("fault", ["disk", "source"])
def test_a_copy_that_fails_is_told_once_and_ends_nothing(settings, task, tmp_path, monkeypatch, capsys, fault):
    here = tmp_path / "here"
    plain, _ = planned(settings, task)
    data, plan = planned(staged(settings, here), task)
    if fault == "source":
        (path,) = (tmp_path / "shards" / "shard-000004").glob("*.arrow")
        told = bytearray(path.read_bytes())
        told[len(told) // 2] ^= 1
        path.write_bytes(told)
        data.train.examples.staging.ahead([4, 5])
    else:
        monkeypatch.setattr("onecurve.data.staging.shutil.copyfile", full)
        data.train.examples.staging.ahead([4, 5])
    finish()
    monkeypatch.undo()
    assert not [path for path in here.iterdir() if path.is_dir()], "half a copy takes room"
    for number in range(1, 20):
        ids = [one for one in plan.step(number).sample_ids if one // 3 != 4]
        assert data.train.take(ids) == plain.train.take(ids)
    finish()
    said = capsys.readouterr().err
    why = {"disk": "No space left on device", "source": "does not hold what was written"}[fault]
    assert said.count("data.stage_to: shards are not copied") == 1 and why in said
    assert copies(here), "the next window is tried again"


def full(*_):
    raise OSError(28, "No space left on device")


def test_room_for_all_sources_is_checked_before_anything_is_copied(settings, task, tmp_path, monkeypatch):
    index = ShardIndex.read(tmp_path / "shards")
    largest = sum(sorted(size for shard in index.shards for size, _ in shard.files.values())[-4 * WINDOW :])
    two = settings.model_copy(update={"train": {"a": settings.train, "b": settings.train}})
    for named, needed in ((settings, largest), (two, 2 * largest)):
        for free in (needed, needed - 1):
            monkeypatch.setattr("onecurve.data.staging.shutil.disk_usage", lambda _, free=free: Usage(free, 0, free))
            if free == needed:
                planned(staged(named, tmp_path / "here"), task)
            else:
                with pytest.raises(ConfigError, match=r"4 windows of 2 shards are up to 0.00 GB, and .* free") as told:
                    planned(staged(named, tmp_path / "here"), task)
                assert told.value.where == "data.stage_to"
    assert not copies(tmp_path / "here")


def test_a_folder_that_cannot_be_written_is_refused(settings, task, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="nothing can be written to") as refused:
        planned(staged(settings, tmp_path / "file" / "here"), task)
    assert refused.value.where == "data.stage_to"


def test_sources_in_windows_are_staged_and_rows_are_read_where_they_lie(settings, task, tmp_path):
    rows = write_jsonl(tmp_path / "more.jsonl", labelled(*(f"tweet {number}" for number in range(7))))
    for weighted in (True, False):
        weights = [{"weight": 2}, {"weight": 1}] if weighted else [{}, {}]
        train = {"news": {"path": settings.train, **weights[0]}, "more": {"path": rows, **weights[1]}}
        mixed = DataSection(train=train, cache_dir=settings.cache_dir, shuffle_window=WINDOW)
        (data, plan), (plain, same) = planned(staged(mixed, tmp_path / "here"), task), planned(mixed, task)
        for number in range(1, 20):
            assert plan.step(number).sample_digest == same.step(number).sample_digest
            ids = plan.step(number).sample_ids
            finish()
            assert data.train.take(ids) == plain.train.take(ids)
            assert 0 < len(copies(tmp_path / "here")) < SHARDS
        shutil.rmtree(tmp_path / "here")


def test_names_tell_encodings_apart(settings, task, tmp_path):
    index = ShardIndex.read(Path(settings.train))
    names = Staging(tmp_path, tmp_path, index.shards).names
    assert len({*names}) == SHARDS and all(name.startswith("shard-0000") for name in names)
