from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onecurve.config import TaskSection
from onecurve.errors import ConfigError
from onecurve.tasks import load_task
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Survey
from tests.readings import ReadingOf
from tests.tasks.contract import Case

ROWS = [
    {"source": "the quick brown fox", "target": "the dog"},
    {"source": "the dog", "target": "we were happy with the film, and they were not."},
    {"source": "a", "target": "b"},
]


def _oracle(model: Any, batch: Any) -> Any:
    return model(**batch).loss


CASES = {"seq2seq": Case(ROWS, model="tiny_t5", oracle=_oracle)}


@pytest.fixture(scope="module")
def t5(tiny_t5: Path) -> ReadingOf:
    from transformers import AutoConfig, AutoTokenizer

    return ReadingOf(lambda: AutoTokenizer.from_pretrained(tiny_t5), 64, AutoConfig.from_pretrained(tiny_t5))


def _task(**settings: Any) -> Any:
    return load_task(TaskSection(name="seq2seq_lm", **settings))


def test_source_and_target_end_with_eos_and_all_of_the_target_is_learnt(t5: ReadingOf) -> None:
    (example,) = _task(prefix="to dog: ").encode(ROWS[0], Survey(), t5, truncate=False)
    eos = t5.tokenizer.eos_token_id
    assert t5.tokenizer.decode(example["input_ids"], skip_special_tokens=True) == "to dog: the quick brown fox"
    assert example["labels"] == t5.tokenizer(text_target="the dog")["input_ids"]
    assert example["input_ids"][-1] == example["labels"][-1] == eos
    assert example["num_items"] == len(example["labels"])


def test_length_is_the_longer_and_cost_is_both(t5: ReadingOf) -> None:
    (example,) = _task().encode(ROWS[1], Survey(), t5, truncate=False)
    source, target = len(example["input_ids"]), len(example["labels"])
    assert source < target
    assert _task().length(example) == target and _task().num_tokens(example) == source + target
    short = ReadingOf(t5.load, source + 2, t5.config)
    (cut,) = _task().encode(ROWS[1], Survey(), short, truncate=True)
    assert _task().length(cut) == source + 2 and cut["input_ids"] == example["input_ids"]


def test_padding_of_the_target_is_not_learnt(t5: ReadingOf) -> None:
    examples = [_task().encode(row, Survey(), t5, truncate=False)[0] for row in ROWS]
    labels = _task().collate(examples, t5)["labels"]
    assert [int((row != IGNORE_INDEX).sum()) for row in labels] == [e["num_items"] for e in examples]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "a"}, "target is missing"),
        ({"source": " ", "target": "b"}, "source is empty"),
        ({"source": 3, "target": "b"}, "source must be text; got 3"),
    ],
)
def test_bad_rows_are_told(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        _task().check(row)


def test_a_model_without_an_encoder_is_refused(t5: ReadingOf) -> None:
    config = SimpleNamespace(is_encoder_decoder=False, model_type="llama")
    with pytest.raises(ConfigError, match="needs an encoder-decoder model; llama is not one"):
        _task().encode(ROWS[0], Survey(), ReadingOf(t5.load, 64, config), truncate=False)


def test_a_model_writes_after_the_source_what_it_writes_alone(tiny_t5: Path, t5: ReadingOf) -> None:
    from transformers import AutoModelForSeq2SeqLM

    task, model = _task(), AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    prompts = [task.prompt(row, t5) for row in ROWS]
    together = task.generate(model, prompts, t5, max_new_tokens=8, do_sample=False)
    alone = [task.generate(model, [prompt], t5, max_new_tokens=8, do_sample=False)[0] for prompt in prompts]
    assert together == alone and len(together) == len(ROWS)
