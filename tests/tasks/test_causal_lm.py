import logging
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecurve.errors import ConfigError
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Survey
from onecurve.tasks.causal_lm import Task
from tests.readings import padding, reading
from tests.tasks.contract import Case

TASK = Task(Task.Settings())
TEXTS = ["the quick brown fox jumps over the lazy dog", "the dog", "we were happy with the film, and they were not."]
CASES = {"causal_lm": Case([{"text": text} for text in TEXTS])}


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def _encode(text: str, tokenizer: Any, max_length: int = 64) -> list[dict[str, Any]]:
    return TASK.encode({"text": text}, Survey(), reading(tokenizer, max_length), truncate=False)


@given(length=st.integers(1, 60), max_length=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_each_token_after_the_first_is_a_target_exactly_once(length: int, max_length: int, tokenizer: Any) -> None:
    text = "".join(chr(ord("A") + n % 26) for n in range(length))
    document = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    blocks = _encode(text, tokenizer, max_length)
    targets = [token for block in blocks for token in block["labels"][1:]]
    assert targets == document[1:]
    assert sum(block["num_items"] for block in blocks) == len(document) - 1
    assert all(2 <= len(block["input_ids"]) <= max_length for block in blocks)


def test_a_document_starts_with_bos_where_the_tokenizer_adds_it_and_ends_with_one_eos(tokenizer: Any) -> None:
    (example,) = _encode("the dog", tokenizer)
    assert tokenizer.decode(example["input_ids"]) == "<|begin|>the dog<|end|>"
    assert _encode("the dog<|end|>", tokenizer) == [example]


def test_the_real_end_token_is_learnt_where_padding_shares_it(tokenizer: Any) -> None:
    examples = _encode("the dog", tokenizer) + _encode("the lazy dog sleeps", tokenizer)
    batch = TASK.collate(examples, padding(tokenizer.eos_token_id))
    assert (batch["labels"] == tokenizer.eos_token_id).sum() == 2
    assert TASK.num_items(batch) == sum(example["num_items"] for example in examples)


def test_a_document_of_one_token_has_nothing_to_predict(tokenizer: Any) -> None:
    bare = tokenizer.__class__(
        tokenizer_object=_without_bos(tokenizer), eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token
    )
    assert _encode("<|end|>", bare) == []
    assert len(_encode("A", bare)) == 1


def _without_bos(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return backend


def test_a_megabyte_is_tokenised_in_its_own_time_and_without_a_warning(tokenizer: Any, caplog: Any) -> None:
    line, started = "the quick brown fox jumps over the dog.\n", time.process_time()
    _encode(line * 1_250, tokenizer, max_length=256)
    of_a_twentieth = time.process_time() - started
    started = time.process_time()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").addHandler(caplog.handler)
        blocks = _encode(line * 25_000, tokenizer, max_length=256)
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert time.process_time() - started < 100 * of_a_twentieth, "more than linear in its length"
    assert len(blocks) > 1000 and not caplog.records


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer: Any) -> None:
    endless = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ConfigError, match="end-of-text"):
        _encode("the dog", endless)


@pytest.mark.parametrize(
    ("row", "why"), [({}, "missing"), ({"text": None}, "missing"), ({"text": " \n"}, "empty"), ({"text": 3}, "int")]
)
def test_a_bad_row_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        TASK.check(row)


def test_the_first_token_is_shown_as_read_only(tokenizer: Any) -> None:
    (example,) = _encode("the dog", tokenizer)
    assert TASK.describe(example, Survey(), tokenizer) == "<|begin|>«the dog<|end|>»"


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PrefixTuningConfig", "LoraConfig"])
def test_virtual_tokens_of_prompt_learning_are_nobodys_targets(method: str, tiny_llama: Path, tokenizer: Any) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    extra = {} if method == "LoraConfig" else {"num_virtual_tokens": 3}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = peft.get_peft_model(model, getattr(peft, method)(task_type=TASK.peft_task_type, **extra)).eval()
    batch = TASK.collate(_encode("the dog sleeps", tokenizer) + _encode("the dog", tokenizer), padding(0))
    logits = TASK.forward(model, batch)
    assert len(logits) == TASK.num_items(batch)
    batch["labels"][:, 0] = (
        IGNORE_INDEX  # PEFT predicts it too, from the last virtual token; here it is nobody's target
    )
    ours = float(TASK.loss_sum(logits, batch).detach()) / TASK.num_items(batch)
    assert ours == pytest.approx(float(model(**batch).loss.detach()), rel=1e-5)
