"""Prompts of a split: of the rows that were encoded, with room for what is written, before any weights load."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onecurve.config import TaskSection
from onecurve.data.prompts import read_prompts
from onecurve.data.rows import Broken, Located
from onecurve.errors import ConfigError, DataError
from onecurve.tasks import load_task
from onecurve.tasks.base import Survey
from tests.readings import ReadingOf

ROWS = [
    Located("line 1", {"prompt": "the dog", "response": "#### 7"}, 0),
    Broken("line 2", "broken JSON"),
    Located("line 3", {"text": "learnt whole"}, 2),
    Located("line 4", {"prompt": "the fox and the dog", "response": "#### 8"}, 3),
    Located("line 5", {"prompt": "dropped", "response": "too long"}, 4),
]


def prompts(folder: Path, rows: list[Any] = ROWS, positions: int | None = None, **settings: Any) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    reading = ReadingOf(lambda: AutoTokenizer.from_pretrained(folder), 12, config, positions=positions)
    name = "seq2seq_lm" if config.is_encoder_decoder else "sft"
    task = load_task(TaskSection(name=name, **settings))
    source: Any = SimpleNamespace(rows=lambda: rows, key="data.eval", spec="dev.jsonl")
    examples: Any = SimpleNamespace(rows=np.array([0, 2, 2, 3]))
    return read_prompts(source, examples, task, Survey(), reading)


def test_rows_that_were_encoded_and_have_an_answer_are_asked(tiny_llama: Path) -> None:
    found = prompts(tiny_llama, generate={"max_new_tokens": 9})
    assert [(one.row, one.reference) for one in found] == [(0, "#### 7"), (3, "#### 8")]
    assert [one.length for one in found] == [len(one.example["input_ids"]) for one in found]
    assert prompts(tiny_llama) == []


def test_a_reference_without_the_answer_is_told_with_its_place(tiny_llama: Path) -> None:
    settings = {"generate": {}, "metrics": ["exact_match"]}
    assert len(prompts(tiny_llama, answer_pattern="#### (.)", **settings)) == 2
    with pytest.raises(DataError, match=r"line 4: the reference has nothing that task.answer_pattern \(7\) matches"):
        prompts(tiny_llama, answer_pattern="7", **settings)
    with pytest.raises(DataError, match=r"data.eval: no row of 'dev.jsonl' has an answer to compare"):
        prompts(tiny_llama, ROWS[1:3], **settings)


def test_what_is_written_must_fit_behind_the_prompt(tiny_llama: Path) -> None:
    longest = max(one.length for one in prompts(tiny_llama, generate={}))
    assert prompts(tiny_llama, positions=longest + 5, generate={"max_new_tokens": 5})
    said = rf"max_new_tokens: is 6, and the prompt of line 4 has {longest} tokens: .* Set it to 5 or less"
    with pytest.raises(ConfigError, match=said):
        prompts(tiny_llama, positions=longest + 5, generate={"max_new_tokens": 6})


def test_an_encoder_s_prompt_is_cut_and_the_decoder_has_positions_of_its_own(tiny_t5: Path) -> None:
    rows = [Located("line 1", {"source": "the fox and " * 9, "target": "x"}, 0)]
    (found,) = prompts(tiny_t5, rows, positions=20, generate={"max_new_tokens": 20})
    assert found.length == len(found.example["input_ids"]) == 12
    with pytest.raises(ConfigError, match=r"must be at most 20, the decoder's positions; got 21"):
        prompts(tiny_t5, rows, positions=20, generate={"max_new_tokens": 21})
