"""Named sources and sets: each read by settings of its own, and named in errors, counts and fingerprints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from onecurve.config import DataSection, Recipe
from onecurve.data.loader import Loader
from onecurve.data.plan import plan_run
from onecurve.data.position import Position
from onecurve.data.splits import Data
from onecurve.errors import ConfigError, DataError, UserError
from onecurve.summary import _describe_columns, _describe_partial, _describe_splits
from tests.data.byte_level import LoggedTask, labelled, load, write_jsonl

NEWS = [f"news {number:02}" for number in range(20)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "news.jsonl", labelled(*NEWS))
    rows = "".join(f"tweet {number},{'ac'[number % 2]}\n" for number in range(6))
    (tmp_path / "tweets.csv").write_text("body,mood\n" + rows)
    (tmp_path / "more.txt").write_text("body;mood\nmore 0;a\nmore 1;c\n")
    return tmp_path


def tweets(folder: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(folder / "tweets.csv"), "columns": {"text": "body", "label": "mood"}, **more}


def loaded(folder: Path, train: Any, **section: Any) -> Data:
    settings = DataSection(train=train, cache_dir=str(folder / "cache"), **section)
    return load(settings, LoggedTask(folder / "log"))


def recipe(train: Any, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "output_dir": "unused",
            "task": {"name": "text_classification"},
            "model": {"path": "unused"},
            "data": {"train": train, **data},
            "train": {"epochs": 2, "global_batch_size": 8},
        }
    )


def test_each_source_is_read_by_columns_format_and_limit_of_its_own(files: Path) -> None:
    more = {"path": str(files / "more.txt"), "format": "csv", "delimiter": ";", "columns": tweets(files)["columns"]}
    train = {"news": str(files / "news.jsonl"), "tweets": tweets(files, max_samples=4), "more": more}
    data = loaded(files, train)
    assert [(one.title, len(one)) for one in data.train.sets] == [("news", 20), ("tweets", 4), ("more", 2)]
    assert len(data.train) == 26 == len(data.train.lengths) == len(data.train.num_items)
    first = [data.train[number] for number in (0, 20, 24)]
    assert first == [one[0] for one in data.train.sets], "an id is the source's offset and the place in it"
    assert data.survey.labels == ["a", "b", "c"]
    assert data.survey.label_counts == [10 + 2 + 1, 10, 2 + 1]
    assert _describe_columns(data.parts, LoggedTask(files)) == "text, label; in more body as text, mood as label"
    assert list(_describe_partial(data)) == ["          news has no c; tweets has no b; more has no b"]


def test_what_a_source_has_is_kept_where_another_source_changes(files: Path) -> None:
    train = {"news": str(files / "news.jsonl"), "tweets": tweets(files)}
    before = loaded(files, train)
    (files / "tweets.csv").write_text("body,mood\nanother,a\nand this,c\n")
    after = loaded(files, train)
    assert after.train.sets[0].key == before.train.sets[0].key
    assert after.fingerprint != before.fingerprint
    renamed = loaded(files, {"old": train["news"], "tweets": train["tweets"]})
    assert renamed.fingerprint != after.fingerprint, "names count"


def test_without_weights_each_example_comes_once_an_epoch_in_the_order_of_a_list(files: Path) -> None:
    path, other = str(files / "news.jsonl"), write_jsonl(files / "other.jsonl", labelled("x", "y", "z"))
    named, plain = loaded(files, {"a": path, "b": other}), loaded(files, [path, other])
    plans = [plan_run(data.splits, recipe("unused")) for data in (named, plain)]
    assert plans[0].mixture is None
    assert [step.sample_digest for step in plans[0].steps(1, 6)] == [s.sample_digest for s in plans[1].steps(1, 6)]
    assert [named.train[number] for number in range(23)] == [plain.train[number] for number in range(23)]


def test_weights_and_temperatures_become_a_mixture_that_is_told_source_by_source(files: Path) -> None:
    train = {"news": {"path": str(files / "news.jsonl"), "weight": 0.6}, "tweets": tweets(files, weight=0.4)}
    data = loaded(files, train)
    plan = plan_run(data.splits, recipe(train))
    assert plan.mixture and plan.mixture.weights == {"news": 3, "tweets": 2}
    assert plan.max_steps == 2 * 4, "an epoch has as many draws as there are examples"
    assert list(_describe_splits(data, plan)) == [
        "train     26 examples from 26 rows",
        "  news      20 examples from 20 rows; weight 3, 60.0% of the draws, 1.56 passes",
        "  tweets    6 examples from 6 rows; weight 2, 40.0% of the draws, 3.47 passes",
    ]
    flat = {"news": train["news"]["path"], "tweets": tweets(files)}
    resolved = plan_run(data.splits, recipe(flat, temperature=0)).mixture
    assert resolved and resolved.weights == {"news": 1, "tweets": 1}


def test_draws_are_keyed_by_the_pass_over_the_source(files: Path) -> None:
    train = {"news": {"path": str(files / "news.jsonl"), "weight": 1}, "tweets": tweets(files, weight=4)}
    data = loaded(files, train)
    step = plan_run(data.splits, recipe(train)).step(
        2
    )  # draws 8 to 15: a second pass over 6 tweets, the first over the news
    one_rank: Any = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    silent: Any = None  # nothing is read
    loader = Loader(data.train, silent, silent, one_rank)
    wanted = [loader._wanted(step, position, ids) for position, ids, _ in step.of_rank(0, 1)]
    ids, passes = (
        np.concatenate([np.frombuffer(getattr(one, of), np.int64) for one in wanted]) for of in ("ids", "passes")
    )
    assert {int(of_pass) for number, of_pass in zip(ids, passes, strict=True) if number < 20} == {0}
    assert {int(of_pass) for number, of_pass in zip(ids, passes, strict=True) if number >= 20} == {1, 2}


def test_named_sets_are_splits_of_their_own_and_a_share_is_one_of_each_source(files: Path) -> None:
    train = {"news": str(files / "news.jsonl"), "tweets": tweets(files)}
    data = loaded(files, train, eval={"tweets": tweets(files, max_samples=2), "news": "10%"}, test="50%")
    assert data.eval and data.test
    assert [(one.name, len(one)) for one in data.eval.sets] == [("eval/tweets", 2), ("eval/news", 2)]
    assert [(one.name, len(one)) for one in data.test.sets] == [("test/news", 10), ("test/tweets", 3)]
    assert [len(one) for one in data.train.sets] == [8, 3]
    assert len(data.eval) == 4


REFUSED = [
    ({"news": "news.jsonl", "gone": "gone.jsonl"}, {}, r"^data.train.gone: no such file or folder"),
    ({"news": {"path": "news.jsonl", "delimiter": ";"}}, {}, r"^data.train.news.delimiter: has no effect"),
    ({"news": {"path": "news.jsonl", "columns": {"txt": "x"}}}, {}, r"^data.train.news.columns: this task reads no"),
    ({"news": "news.jsonl", "tweets": "tweets.csv"}, {}, r"Set data.train.tweets.columns.text or .*label to the col"),
    ({"news": "news.jsonl", "empty": "empty.jsonl"}, {}, r"^data.train.empty: '.*empty.jsonl' has no rows"),
    ({"news": "news.jsonl", "long": "long.jsonl"}, {"on_long": "drop"}, r"^data.train.long: no example is left of"),
    ({"n": "news.jsonl"}, {"eval": {"n": {"path": "5%", "max_samples": 1}}}, r"^data.eval.n: .* write n: 5%"),
    ("news.jsonl", {"eval": {"news": "5%"}}, r"^data.eval.news: 5% is a share of a training source"),
]


@pytest.mark.parametrize(("train", "section", "said"), REFUSED)
def test_a_mistake_is_told_with_the_name_of_its_source(files: Path, train: Any, section: Any, said: str) -> None:
    write_jsonl(files / "empty.jsonl", [])
    write_jsonl(files / "long.jsonl", labelled("x" * 200))

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: one if name == "columns" else placed(one) for name, one in value.items()}
        return str(files / value) if "." in value and "%" not in value else value

    with pytest.raises(UserError, match=said) as error:
        loaded(files, placed(train), **section)
    assert isinstance(error.value, ConfigError | DataError)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"train": {"a": {"path": "x", "weight": 1}, "b": "y"}}, "train.b has no weight, and a has"),
        ({"train": {"a": {"path": "x", "weight": 1}}, "temperature": 0.5}, "exclude each other"),
        ({"train": {"a/b": "x"}}, "use letters, digits"),
        ({"train": "x", "eval": {"loss": "x"}}, "the name of a score"),
        ({"train": "x", "eval": {"a": {"path": "x", "weight": 1}}}, "Extra inputs are not permitted"),
        ({"train": {}}, "names no data"),
    ],
)
def test_what_contradicts_itself_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataSection.model_validate(data)


def test_another_mixture_begins_a_pass_of_its_own() -> None:
    begun = Position(step=3, samples=24, epoch=0, offset=24)
    assert begun.after_changes({"data.weights"}) == Position(step=3, samples=24, epoch=1, offset=0)
