from pathlib import Path
from typing import Any

import pytest

from onecurve.config import DataSection
from onecurve.data.encoding import load_data
from onecurve.errors import ConfigError, DataError, UserError
from onecurve.tasks.causal_lm import Task as CausalLm
from onecurve.tasks.sft import Task as Sft
from onecurve.tasks.text_classification import Task as TextClassification
from onecurve.tasks.text_classification import TextClassificationSettings
from tests.data.byte_level import byte_tokenizer, labelled, load, write_jsonl
from tests.readings import ReadingOf


@pytest.fixture
def task() -> TextClassification:
    return TextClassification(TextClassificationSettings())


def section(tmp_path: Path, train: list[Any], **settings: Any) -> DataSection:
    for name in ("eval", "test"):
        if isinstance(settings.get(name), list):
            settings[name] = write_jsonl(tmp_path / f"{name}.jsonl", settings[name])
    path = write_jsonl(tmp_path / "train.jsonl", train)
    return DataSection(train=path, cache_dir=str(tmp_path / "cache"), **settings)


def ids(*texts: str) -> list[list[int]]:
    return [byte_tokenizer()(text)["input_ids"] for text in texts]


def test_all_splits_are_encoded_in_the_order_of_their_rows(tmp_path: Path, task: TextClassification) -> None:
    settings = section(tmp_path, labelled("one", "three", "x"), eval=labelled("dev"), test=labelled("t", "test"))
    data = load(settings, task, max_length=64)
    assert data.eval is not None and data.test is not None
    assert [e["input_ids"] for e in data.train.take([2, 0, 1])] == ids("x", "one", "three")
    assert [e["labels"] for e in data.train.take(range(3))] == [0, 1, 0]
    assert data.train.lengths.tolist() == [3, 5, 1]
    assert data.train.num_items.tolist() == [1, 1, 1]
    assert [len(split) for split in (data.train, data.eval, data.test)] == [3, 1, 2]
    assert [split.name for split in (data.train, data.eval, data.test)] == ["train", "eval", "test"]
    assert (data.survey.labels, data.max_length) == (["a", "b"], 64)
    assert data.train.report.rows == 3 and not data.train.report.skipped


@pytest.mark.parametrize(
    ("known", "labels"),
    [
        (["b", "a"], ["b", "a"]),
        (["B", "A"], ["b", "a"]),
        (["b", "a", "c"], ["a", "b"]),
        (["LABEL_0", "LABEL_1"], ["a", "b"]),
    ],
)
def test_ids_are_the_models_where_it_knows_the_same_labels(
    tmp_path: Path, task: TextClassification, known: list[str], labels: list[str]
) -> None:
    settings = section(tmp_path, labelled("one", "two"), eval=labelled("dev"))
    read = ReadingOf(byte_tokenizer, 64, labels=known)
    data = load_data(settings, task, read, 0)
    assert (data.survey.labels, data.survey.order == "model") == (labels, labels == ["b", "a"])
    assert [example["labels"] for example in data.train.take([0, 1])] == [labels.index("a"), labels.index("b")]
    assert data.eval is not None and data.eval[0]["labels"] == labels.index("a")
    fixed = TextClassification(TextClassificationSettings(labels=["a", "b"]))
    assert load_data(settings, fixed, read, 0).survey.labels == ["a", "b"]


def test_a_split_that_is_not_named_is_none(tmp_path: Path, task: TextClassification) -> None:
    data = load(section(tmp_path, labelled("one", "two")), task)
    assert data.eval is None and data.test is None


def test_rows_with_and_without_an_optional_column_meet_in_one_split(tmp_path: Path, tiny_bert: Path) -> None:
    from transformers import AutoTokenizer

    rows = labelled("one", "two", "three")
    rows[1]["text_pair"] = "second"
    task = TextClassification(TextClassificationSettings())
    data = load(section(tmp_path, rows), task, AutoTokenizer.from_pretrained(tiny_bert))
    assert ["token_type_ids" in example for example in data.train.take(range(3))] == [False, True, False]


# Nothing heavy before every row is known to be good


@pytest.mark.parametrize(
    ("train", "settings", "message"),
    [
        (["", "  "], {}, r"data\.train: '.*train\.jsonl' has no rows"),
        ([*labelled("one", "two"), "{broken"], {}, r"train\.jsonl, line 3: invalid JSON.*data\.on_bad_row: skip"),
        ([*labelled("one"), {"text": " ", "label": "a"}], {}, r"train\.jsonl, line 2: text is empty\. \(data"),
        (labelled("one"), {}, "at least 2 different labels"),
        ([{"text": "x"}], {}, "no column 'label'; the columns are: text"),
        (labelled("one", "two"), {"columns": {"txt": "x"}}, r"data\.columns"),
        (labelled("one", "two"), {"encoding": "utf-9"}, r"data\.encoding"),
        (labelled("one", "two"), {"eval": "no/such/file.jsonl"}, r"data\.eval: no such file"),
        (labelled("one", "two"), {"eval": []}, r"data\.eval: .* has no rows"),
        (labelled("one", "two"), {"test": [{"text": "x", "label": "c"}]}, r"test\.jsonl, line 1: label 'c' was never"),
        (["{", "["], {"on_bad_row": "skip"}, r"all 2 rows of '.*' are invalid; the first: .*line 1: invalid JSON"),
    ],
)
def test_a_mistake_in_the_data_is_told_before_the_tokenizer_is_loaded(
    tmp_path: Path, task: TextClassification, train: list[Any], settings: dict[str, Any], message: str
) -> None:
    def tokenizer() -> Any:
        raise AssertionError("loaded too early")

    with pytest.raises(UserError, match=message) as error:
        load_data(section(tmp_path, train, **settings), task, ReadingOf(tokenizer), 0)
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.glob("cache/*") if path.is_dir()]


# on_bad_row


@pytest.mark.parametrize(
    ("rows", "reason", "is_advised"),
    [
        ([*labelled("one", "two"), {"text": "", "label": "a"}], "line 3: text is empty.", True),
        ([{"text": "", "label": "a"}, *labelled("one", "two")], "line 1: text is empty.", True),
        ([{"text": "", "label": "a"}, {"text": 1, "label": "a"}, "{"], "line 1: text is empty.", False),
        ([{"text": "one"}, {"text": "two"}], "there is no column 'label'; the columns are: text.", False),
        ([{"text": "one"}, *labelled("two", "three")], "line 1: there is no column 'label'", True),
    ],
)
def test_skipping_is_advised_only_where_rows_would_remain(
    tmp_path: Path, task: TextClassification, rows: list[Any], reason: str, is_advised: bool
) -> None:
    with pytest.raises(DataError) as error:
        load(section(tmp_path, rows), task)
    assert reason in str(error.value)
    assert ("data.on_bad_row" in str(error.value)) == is_advised


def test_skipped_rows_are_counted_and_the_first_places_kept(tmp_path: Path, task: TextClassification) -> None:
    bad = [
        "{",
        "[]",
        {"label": "a"},
        {"text": "", "label": "a"},
        {"text": 3, "label": "a"},
        {"text": "x", "label": None},
    ]
    dev = [*labelled("dev"), {"text": " ", "label": "a"}]
    data = load(section(tmp_path, [*bad, *labelled("one", "two")], eval=dev, on_bad_row="skip"), task)
    assert data.eval is not None
    assert [e["input_ids"] for e in data.train.take([0, 1])] == ids("one", "two")
    assert (data.train.report.rows, data.train.report.skipped, len(data.train)) == (8, 6, 2)
    assert len(data.train.report.skipped_places) == 5
    assert data.train.report.skipped_places[1].startswith(f"{tmp_path}/train.jsonl, line 2: must be a JSON object")
    assert (data.eval.report.rows, data.eval.report.skipped, len(data.eval)) == (2, 1, 1)
    assert data.eval.report.skipped_places == [f"{tmp_path}/eval.jsonl, line 2: text is empty."]
    assert (data.train.report.label_counts, data.eval.report.label_counts) == ({"a": 1, "b": 1}, {"a": 1})
    assert data.survey.label_counts == [1, 1]


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_label_that_training_lacks_is_never_left_out_of_a_score(tmp_path: Path, on_bad_row: str) -> None:
    dev = [*labelled("dev"), {"text": "x", "label": "c"}]
    settings = section(tmp_path, labelled("one", "two"), eval=dev, on_bad_row=on_bad_row)
    with pytest.raises(
        DataError, match=r"eval\.jsonl, line 2: label 'c' was never seen .*Add it to task\.labels, so that"
    ):
        load(settings, TextClassification(TextClassificationSettings()))
    known = load(settings, TextClassification(TextClassificationSettings(labels=["a", "b", "c"])))
    assert known.eval and [example["labels"] for example in known.eval.take([0, 1])] == [0, 2]
    assert known.survey.label_counts == [1, 1, 0] and known.survey.unseen == ["c"]


TEMPLATE = (
    "{% for message in messages %}{% if message.content == 'no' %}{{ raise_exception('no!') }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)


def test_a_row_that_only_encoding_finds_bad_follows_on_bad_row_too(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "response": "yes"} for prompt in ("one", "no", "two")]
    tokenizer = byte_tokenizer(chat_template=TEMPLATE)
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: .*no!"):
        load(section(tmp_path, rows), Sft(Sft.Settings()), tokenizer)
    for _ in range(2):  # encoded, then from the cache
        report = load(section(tmp_path, rows, on_bad_row="skip"), Sft(Sft.Settings()), tokenizer).train.report
        assert (report.rows, report.skipped, len(report.skipped_places)) == (3, 1, 1)


# on_long


LONG = labelled("short", "x" * 12, "y" * 11, "z" * 10, "w" * 30)


def test_a_long_example_is_an_error_that_names_the_choices(tmp_path: Path, task: TextClassification) -> None:
    with pytest.raises(DataError) as error:
        load(section(tmp_path, LONG), task, max_length=10)
    assert str(error.value) == (
        f"{tmp_path}/train.jsonl, line 2: has 12 tokens, more than the maximum of 10 (data.max_length); "
        "so have 3 of the first 5 rows. "
        "Set data.on_long to truncate or drop, or raise data.max_length."
    )
    assert not [path for path in tmp_path.glob("cache/*") if path.is_dir() and not path.name.startswith("rows-")]


def test_long_examples_are_cut_and_counted(tmp_path: Path, task: TextClassification) -> None:
    data = load(section(tmp_path, LONG, on_long="truncate"), task, max_length=10)
    assert data.train.lengths.tolist() == [5, 10, 10, 10, 10]
    assert (data.train.report.truncated, data.train.report.dropped) == (3, 0)


def test_long_examples_are_left_out_and_counted(tmp_path: Path, task: TextClassification) -> None:
    for _ in range(2):  # encoded, then from the cache
        data = load(section(tmp_path, LONG, on_long="drop"), task, max_length=10)
        assert data.train.lengths.tolist() == [5, 10]
        assert (data.train.report.truncated, data.train.report.dropped, data.train.report.rows) == (0, 3, 5)


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path: Path, task: TextClassification) -> None:
    settings = section(tmp_path, labelled("one", "two"), eval=labelled("x" * 20), on_long="drop")
    with pytest.raises(DataError, match=r"data\.eval: no example is left of .*, 1 examples too long"):
        load(settings, task, max_length=10)


def test_a_row_with_nothing_to_learn_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 20, "response": "r"}, {"prompt": "p", "response": "r"}]
    data = load(section(tmp_path, rows, on_long="truncate"), Sft(Sft.Settings()), max_length=10)
    assert (len(data.train), data.train.report.empty, data.train.report.truncated) == (1, 1, 0)


def test_a_document_becomes_as_many_examples_as_it_needs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 25)
    settings = DataSection(train=str(tmp_path), cache_dir=str(tmp_path / ".cache"))
    data = load(settings, CausalLm(CausalLm.Settings()), max_length=10)
    assert data.train.report.rows == 1 and len(data.train) > 2
    assert data.train.lengths.max() == 10
    assert all(
        example["num_items"] == len(example["labels"]) - 1 for example in data.train.take(range(len(data.train)))
    )


def test_a_tasks_own_refusal_passes_through(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]
    with pytest.raises(ConfigError, match="chat template"):
        load(section(tmp_path, rows), Sft(Sft.Settings()))


def test_data_that_changes_while_it_is_encoded_is_not_kept(tmp_path: Path, task: TextClassification) -> None:
    settings = section(tmp_path, labelled("one", "two"))

    def tokenizer() -> Any:
        write_jsonl(tmp_path / "train.jsonl", labelled("one", "two", "three"))
        return byte_tokenizer()

    with pytest.raises(DataError, match=r"data\.train: '.*' changed while it was read"):
        load_data(settings, task, ReadingOf(tokenizer), 0)
    assert len(load(settings, task).train) == 3
