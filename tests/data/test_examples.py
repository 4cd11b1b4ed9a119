import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onecurve.data import examples as module
from onecurve.data.checking import Report
from onecurve.data.examples import Examples, write_examples
from onecurve.data.splits import Split


def measure(example: dict[str, Any]) -> tuple[int, int]:
    length = len(example["input_ids"])
    return length, length


def example(number: int, length: int, **more: Any) -> dict[str, Any]:
    return {"input_ids": [number] * length, "labels": number, "num_items": 1 + number, **more}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("examples")
    assert write_examples(folder, (example(n, n % 7) for n in range(2500)), measure) == 2500
    return Split("train", Report(), Examples(folder))


@given(st.lists(st.integers(0, 2499), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_numbers_are_taken_in_their_order(split: Split, numbers: list[int]) -> None:
    assert split.take(numbers) == [example(n, n % 7) for n in numbers]


def test_lengths_and_items_are_known_without_reading_examples(split: Split) -> None:
    assert len(split) == 2500
    assert split.lengths.dtype == split.num_items.dtype == "int32"
    assert split.lengths.tolist() == [n % 7 for n in range(2500)]
    assert split.num_items.tolist() == [1 + n for n in range(2500)]


@pytest.mark.parametrize("number", [-1, 2500])
def test_a_number_beyond_the_split_is_an_error(split: Split, number: int) -> None:
    with pytest.raises(IndexError):
        split[number]


def test_ids_are_stored_in_32_bits_and_read_as_plain_numbers(split: Split) -> None:
    [file] = split.examples.folder.glob("*.arrow")
    assert pa.ipc.open_file(str(file)).schema.field("input_ids").type == pa.list_(pa.int32())
    assert [type(value) for value in (split[6]["input_ids"][0], split[6]["labels"])] == [int, int]


def test_a_split_travels_to_a_worker_as_its_path(split: Split) -> None:
    split[3]
    travelled = pickle.dumps(split)
    assert len(travelled) < 1000
    assert pickle.loads(travelled).take([3, 2]) == split.take([3, 2])


KINDS = st.fixed_dictionaries(
    {"input_ids": st.lists(st.integers(0, 2**31 - 1)), "num_items": st.integers(0, 9)},
    optional={
        "labels": st.lists(st.floats(allow_nan=False)),
        "token_type_ids": st.lists(st.integers(0, 1)),
        "weight": st.floats(allow_nan=False),
        "name": st.text(st.characters(codec="utf-8")),
        "spans": st.lists(st.lists(st.integers(0, 9))),
    },
)


@given(st.lists(KINDS, min_size=1, max_size=12), st.integers(1, 4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_keys_may_come_and_go_and_any_batch_size_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    written: list[dict[str, Any]],
    batch_examples: int,
) -> None:
    monkeypatch.setattr(module, "_BATCH_EXAMPLES", batch_examples)
    folder = tmp_path_factory.mktemp("any")
    write_examples(folder, written, measure)
    assert [Examples(folder)[n] for n in range(len(written))] == written


def test_a_label_that_turns_out_to_be_a_fraction_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_EXAMPLES", 2)
    written = [{"input_ids": [1], "labels": label, "num_items": 1} for label in (1, 2, 1.5, 3)]
    write_examples(tmp_path, written, measure)
    assert [Examples(tmp_path)[n]["labels"] for n in range(4)] == [1, 2, 1.5, 3]


def test_long_examples_are_written_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_TOKENS", 100)
    write_examples(tmp_path, (example(n, 40) for n in range(9)), measure)
    [file] = tmp_path.glob("*.arrow")
    assert pa.ipc.open_file(str(file)).num_record_batches == 3


def test_no_example_writes_no_file(tmp_path: Path) -> None:
    assert write_examples(tmp_path, [], measure) == 0
    assert not list(tmp_path.iterdir())


def test_several_terms_have_a_count_each_and_tokens_are_not_the_length(tmp_path: Path) -> None:
    written = [{"input_ids": [1] * n, "num_items": [n, 2 * n]} for n in (1, 2, 3)]
    write_examples(tmp_path, written, lambda example: (len(example["input_ids"]), 10 * len(example["input_ids"])))
    split = Examples(tmp_path)
    assert split.num_items.tolist() == [[1, 2], [2, 4], [3, 6]]
    assert split.lengths.tolist() == [1, 2, 3]
    assert split.num_tokens.tolist() == [10, 20, 30]
