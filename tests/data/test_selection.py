"""Rows held out of training, and samples of rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from onecurve.config import DataSection
from onecurve.data.selection import Selection, share
from onecurve.data.splits import Data, Split
from onecurve.errors import DataError
from onecurve.summary import _describe_split
from tests.data.byte_level import LoggedTask, labelled, load, write_jsonl

TEXTS = [f"text {number:03}" for number in range(100)]


def data(tmp_path: Path, seed: int = 0, **section: Any) -> Data:
    train = write_jsonl(tmp_path / "train.jsonl", labelled(*TEXTS))
    settings = DataSection(train=train, cache_dir=str(tmp_path / "cache"), **section)
    return load(settings, LoggedTask(tmp_path / "log"), seed=seed)


def texts(split: Split | None) -> list[str]:
    assert split
    return [str(example["input_ids"]) for example in split.take(range(len(split)))]


def test_every_row_is_in_exactly_one_split(tmp_path: Path) -> None:
    whole = texts(data(tmp_path).train)
    found = data(tmp_path, eval="5%", test="10%")
    parts = [texts(found.train), texts(found.eval), texts(found.test)]
    assert [len(part) for part in parts] == [85, 5, 10]
    assert sorted(text for part in parts for text in part) == sorted(whole)
    assert all(part == [text for text in whole if text in part] for part in parts), "rows keep their order"
    assert texts(data(tmp_path, eval="5%").eval) == parts[1], "a test share leaves the dev split as it is"
    assert texts(data(tmp_path, eval="5%", seed=1).eval) != parts[1]


def test_a_split_is_said_with_what_it_leaves_out(tmp_path: Path) -> None:
    found = data(tmp_path, eval="5%", max_samples={"train": 20})
    assert found.eval
    assert _describe_split(found.train) == (
        "train     20 examples from 20 of 100 rows (data.eval held out, data.max_samples)"
    )
    assert _describe_split(found.eval) == "eval      5 examples from 5 of 100 rows (5% of data.train)"
    assert _describe_split(data(tmp_path).train) == "train     100 examples from 100 rows"


def test_the_fingerprint_tells_which_rows_are_used(tmp_path: Path) -> None:
    prints = [
        data(tmp_path, **section).fingerprint
        for section in ({}, {"eval": "5%"}, {"eval": "6%"}, {"max_samples": 9}, {"max_samples": 10})
    ]
    assert len(set(prints)) == 5
    assert data(tmp_path, eval="5%").fingerprint == prints[1]
    assert data(tmp_path, seed=1, max_samples=9).fingerprint != prints[3]


def test_samples_are_drawn_from_everywhere_and_nest() -> None:
    def rows(most: int, seed: int = 0) -> set[int]:
        return set(np.flatnonzero(Selection("train", (), most, seed).keep(1000)).tolist())

    assert len(rows(100)) == 100 and rows(50) < rows(100)
    assert max(rows(100)) > 900 and min(rows(100)) < 100
    assert rows(100) != rows(100, seed=1)
    assert len(rows(2000)) == 1000


def test_a_share_of_too_few_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.eval: 5% of 3 training rows is no row\. Set a larger share"):
        Selection("eval", (("eval", 0.05),), None, 0).keep(3)
    with pytest.raises(DataError, match=r"data\.train: the shares of dev and test leave none of 4 rows"):
        Selection("train", (("eval", 0.5), ("test", 0.5)), None, 0).keep(4)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"eval": 0.05}, r"with a percent sign \(5%\); got 0\.05"),
        ({"train": "5%"}, r"train must name data; a share \(5%\) is for eval and test"),
        ({"train": []}, "names no data"),
        ({"max_samples": 0}, "max_samples must be at least 1; got 0"),
        ({"max_samples": {"eval": 5}}, r"max_samples has eval, but data\.eval is not set"),
    ],
)
def test_what_makes_no_split_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSection(**{"train": "x", **section})


def test_shares_are_percentages() -> None:
    assert [share(spec) for spec in ("5%", "12.5 %", "dev.jsonl", None, ["5%"])] == [0.05, 0.125, None, None, None]
