"""Settings of `data` that no split reads are refused, and those that a split does not read leave its key alone."""

import json

import pytest

from onecurve.config import DataSection
from onecurve.data.formats import READERS, READS
from onecurve.errors import ConfigError
from onecurve.tasks.sft import Task as Sft
from onecurve.tasks.text_classification import Task
from tests.data.byte_level import byte_tokenizer, load

ROWS = [("profit rises", "up"), ("profit falls", "down")]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in ROWS))
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{t},{n}\n" for t, n in ROWS))
    return tmp_path


def encode(files, train, **settings):
    asked = DataSection(train=str(files / train), cache_dir=str(files / "cache"), **settings)
    return load(asked, Task(Task.Settings()), byte_tokenizer())


def test_every_format_says_what_it_reads():
    assert READS.keys() == READERS.keys()


@pytest.mark.parametrize(
    ("key", "value", "train"),
    [
        ("header", False, "rows.jsonl"),
        ("quoting", "none", "rows.jsonl"),
        ("sample_by", "line", "rows.csv"),
        ("hub_config", "de", "rows.csv"),
    ],
)
def test_a_setting_that_no_split_reads_is_refused(files, key, value, train):
    with pytest.raises(ConfigError, match=f"data.{key}: has no effect: no split is of a kind"):
        encode(files, train, **{key: value})


def test_a_setting_for_one_split_leaves_the_others_examples_as_they_are(files):
    plain = encode(files, "rows.jsonl", eval=str(files / "rows.csv"))
    quoted = encode(files, "rows.jsonl", eval=str(files / "rows.csv"), quoting="none")
    assert plain.fingerprint == quoted.fingerprint
    assert plain.eval.examples.folder != quoted.eval.examples.folder


def test_a_separator_is_refused_where_a_chat_template_joins_prompt_and_response(files):
    asked = DataSection(
        train=str(files / "rows.csv"), cache_dir=str(files / "cache"), columns={"prompt": "text", "response": "label"}
    )
    task = Sft(Sft.Settings(separator=" => "))
    load(asked, task, byte_tokenizer())
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
    with pytest.raises(ConfigError, match=r"task.separator: has no effect: this model's chat template"):
        load(asked, task, byte_tokenizer(chat_template=template))
