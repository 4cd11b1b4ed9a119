import json
from datetime import date, datetime
from typing import Any

import pytest

from onecurve.config import TaskSection
from onecurve.errors import ConfigError
from onecurve.tasks import load_task
from onecurve.tasks.base import IGNORE_INDEX, BadRow, Survey
from onecurve.tasks.sft import SftSettings, Task
from tests.readings import padding, reading
from tests.tasks.contract import Case
from tests.tiny_models import CHAT_TEMPLATE

TASK = Task(SftSettings())
PAIR = {"prompt": "what?", "response": "the dog"}
CHAT = [
    {"role": "user", "content": "what is the answer?"},
    {"role": "assistant", "content": "there is no answer."},
    {"role": "user", "content": "and the question?"},
    {"role": "assistant", "content": "none."},
]
CASES = {"sft": Case([{"messages": CHAT}, PAIR])}


def _encode(
    row: dict[str, Any], tokenizer: Any, task: Task = TASK, max_length: int = 256, truncate: bool = False
) -> list[dict[str, Any]]:
    task.check(row)
    return task.encode(row, Survey(), reading(tokenizer, max_length), truncate)


def _shown(row: dict[str, Any], tokenizer: Any, task: Task = TASK, **limit: Any) -> str:
    (example,) = _encode(row, tokenizer, task, **limit)
    assert example["num_items"] == sum(label != IGNORE_INDEX for label in example["labels"][1:])
    assert all(
        label in (token, IGNORE_INDEX) for token, label in zip(example["input_ids"], example["labels"], strict=True)
    )
    return task.describe(example, Survey(), tokenizer)


def test_a_prompt_and_its_response_are_rendered_as_one_turn_each(tokenizer: Any) -> None:
    assert _shown(PAIR, tokenizer) == (
        "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n«the dog<|im_end|>»\n"
    )


def test_every_answer_of_a_conversation_is_learnt_with_its_end_of_turn_token(tokenizer: Any) -> None:
    system = {"role": "system", "content": "be short"}
    assert _shown({"messages": [system, *CHAT]}, tokenizer) == (
        "<|im_start|>system\nbe short<|im_end|>\n"
        "<|im_start|>user\nwhat is the answer?<|im_end|>\n<|im_start|>assistant\n«there is no answer.<|im_end|>»\n"
        "<|im_start|>user\nand the question?<|im_end|>\n<|im_start|>assistant\n«none.<|im_end|>»\n"
    )


def test_a_system_prompt_that_the_template_adds_is_read_and_not_learnt(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nbe kind<|im_end|>\n{% endif %}" + CHAT_TEMPLATE
    )
    assert _shown(PAIR, tokenizer).startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nwhat?")
    assert _shown(PAIR, tokenizer).endswith("assistant\n«the dog<|im_end|>»\n")


def test_the_learnt_characters_are_exact_beyond_ascii_and_in_indented_code(tokenizer: Any) -> None:
    answer = "déjà 🦊 vu:\n\n        return  x\n\tnaïve"
    row = {"prompt": "🦊🦊 é", "response": answer}
    assert f"assistant\n«{answer}<|im_end|>»\n" in _shown(row, tokenizer)


def test_indentation_is_learnt_where_the_tokenizer_trims_spaces_off_its_offsets(tokenizer: Any) -> None:
    from tokenizers import processors

    # As in Llama 3. A run of spaces then has no width, and an overlap test for tokens of some width would lose it
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    row = {"prompt": "code", "response": "def add():\n        return 1"}
    offsets = tokenizer(row["response"], return_offsets_mapping=True)["offset_mapping"]
    assert any(left == right for left, right in offsets)
    assert "«def add():\n        return 1<|im_end|>»" in _shown(row, tokenizer)


def test_what_follows_the_last_answer_is_left_out(tokenizer: Any) -> None:
    asked_again = [*CHAT, {"role": "user", "content": "and then?"}]
    assert _encode({"messages": asked_again}, tokenizer) == _encode({"messages": CHAT}, tokenizer)


def test_a_template_without_an_end_token_gets_the_tokenizers_own_after_each_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    asked = "user: what is the answer?\nassistant:"
    assert [TASK.describe(example, Survey(), tokenizer) for example in _encode({"messages": CHAT}, tokenizer)] == [
        f"{asked}« there is no answer.<|end|>»",
        f"{asked} there is no answer.\nuser: and the question?\nassistant:« none.<|end|>»",
    ]


def test_a_token_across_the_edge_is_learnt_and_the_models_own_end_token_not_put_twice(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "<|begin|>{% for m in messages %}"
        "{{ m.content }}{{ '<|end|>' if m.role == 'assistant' else ' => ' }}"
        "{% endfor %}"
    )
    assert _shown(PAIR, tokenizer) == "<|begin|>what? =>« the dog<|end|>»"


def test_a_template_that_refuses_a_row_is_quoted(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadRow, match="the chat template rejects these messages: roles must alternate"):
        _encode(PAIR, tokenizer)


def test_without_a_template_the_separator_stands_between_prompt_and_response(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    assert _shown(PAIR, tokenizer) == "<|begin|>what?\n«the dog<|end|>»"
    arrow = Task(SftSettings(separator=" -> "))
    assert _shown({"prompt": "a", "response": "(b)"}, tokenizer, arrow) == "<|begin|>a -> «(b)<|end|>»"


def test_messages_without_a_template_are_the_recipes_mistake(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        _encode({"messages": CHAT}, tokenizer)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE.replace("<|im_end|>", "<|end|>"), None])
def test_the_end_token_is_learnt_where_padding_shares_it(template: str | None, tokenizer: Any) -> None:
    tokenizer.chat_template, tokenizer.pad_token = template, tokenizer.eos_token
    rows = [PAIR, {"prompt": "what is it?", "response": "the lazy dog sleeps in the sun"}]
    examples = [example for row in rows for example in _encode(row, tokenizer)]
    batch = TASK.collate(examples, padding(tokenizer.pad_token_id))
    assert (batch["labels"] == tokenizer.eos_token_id).sum(-1).tolist() == [1, 1]
    assert TASK.num_items(batch) == sum(example["num_items"] for example in examples)
    assert batch["attention_mask"].sum() == sum(len(example["input_ids"]) for example in examples)


def test_an_answer_that_truncation_cuts_off_leaves_no_example(tokenizer: Any) -> None:
    (whole,) = _encode(PAIR, tokenizer)
    first = next(n for n, label in enumerate(whole["labels"]) if label != IGNORE_INDEX)
    assert _encode(PAIR, tokenizer, max_length=first, truncate=True) == []
    (cut,) = _encode(PAIR, tokenizer, max_length=first + 1, truncate=True)
    assert cut["num_items"] == 1


def test_messages_may_be_json_text_and_other_columns_null_or_empty(tokenizer: Any) -> None:
    columnar = [{**message, "tool_calls": None} for message in CHAT]
    plain = _encode({"messages": CHAT}, tokenizer)
    assert _encode({"messages": json.dumps(CHAT), "prompt": "", "response": ""}, tokenizer) == plain
    assert _encode({"messages": columnar, "prompt": None}, tokenizer) == plain
    assert _encode({**PAIR, "messages": None}, tokenizer) == _encode(PAIR, tokenizer)


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "neither prompt and response nor messages"),
        ({"prompt": "a"}, "response is missing"),
        ({"prompt": "", "response": "b"}, "prompt is empty"),
        ({"prompt": "a", "response": "  "}, "response is empty"),
        ({"prompt": "a", "response": 3}, "response must be text; got int"),
        (
            {**PAIR, "messages": [USER, ANSWER]},
            "messages and also prompt, response; use one of .* data.columns.prompt to ''",
        ),
        ({"input": "c", "messages": [USER, ANSWER]}, "messages and also input; use one of the two forms"),
        ({**PAIR, "input": 3}, "input must be text; got int"),
        ({"response": "b", "input": "c"}, "prompt is missing"),
        ({"messages": "hello"}, "not JSON"),
        ({"messages": []}, "non-empty list"),
        ({"messages": {"role": "user"}}, "got dict"),
        ({"messages": ["a"]}, r"messages\[0\] must be a map"),
        ({"messages": [USER, {"role": "me", "content": "b"}]}, r"messages\[1\].role must be one of .*'me'"),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\].content is missing"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, r"messages\[1\].content is empty"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"name": 3}]}]}, r"tool_calls\[0\] must be a map with the fun"),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, r"tools\[0\] has no name"),
        ({"messages": [USER, ANSWER], "tools": "look"}, "tools is text but not JSON"),
        ({"messages": [USER, ANSWER], "tools": [3]}, r"tools\[0\] must be the JSON schema of a function; got int"),
        ({"text": 3}, "text must be text; got int"),
    ],
)
def test_a_bad_row_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        TASK.check(row)


@pytest.mark.parametrize("value", ["2025-11-06", date(2025, 11, 6)])
def test_the_date_is_read_as_yaml_and_a_saved_recipe_write_it(value: Any) -> None:
    settings = load_task(TaskSection.model_validate({"name": "sft", "date": value})).settings
    assert settings.model_dump(mode="json")["date"] == "2025-11-06"


@pytest.mark.parametrize("value", ["26 Jul 2024", 20240726, "", True, datetime(2024, 7, 26, 10), None])
def test_what_is_no_date_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"task\.date: must be a date such as 2024-07-26; got "):
        load_task(TaskSection.model_validate({"name": "sft", "date": value}))


def test_variables_that_a_run_sets_itself_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.template_kwargs: must not have messages, tools: a run sets"):
        load_task(TaskSection.model_validate({"name": "sft", "template_kwargs": {"tools": [], "messages": 1, "a": 2}}))
    with pytest.raises(ConfigError, match=r"task\.learn: .*'all', 'last' or 'marked'"):
        load_task(TaskSection.model_validate({"name": "sft", "learn": "first"}))


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_an_input_is_asked_below_the_prompt(nothing: str | None, tokenizer: Any) -> None:
    assert _shown({**PAIR, "input": "3 and 4"}, tokenizer).startswith("<|im_start|>user\nwhat?\n3 and 4<|im_end|>")
    assert _encode({**PAIR, "input": nothing}, tokenizer) == _encode(PAIR, tokenizer)
    tokenizer.chat_template = None
    assert _shown({**PAIR, "input": "3 and 4"}, tokenizer) == "<|begin|>what?\n3 and 4\n«the dog<|end|>»"


# History


HISTORY = [["what is the answer?", "there is no answer."]]
ASKED = {"prompt": "and the question?", "response": "none."}


@pytest.mark.parametrize("history", [HISTORY, json.dumps(HISTORY)], ids=["list", "json"])
def test_history_is_the_turns_before_the_prompt_and_its_answers_are_learnt(tokenizer: Any, history: Any) -> None:
    row = {**ASKED, "history": history, "system": "be short"}
    system = {"role": "system", "content": "be short"}
    assert _shown(row, tokenizer) == _shown({"messages": [system, *CHAT]}, tokenizer)
    last = Task(SftSettings(learn="last"))
    assert _shown(row, tokenizer, last) == _shown({"messages": [system, *CHAT]}, tokenizer, last)
    asked = {name: value for name, value in row.items() if name != "response"}
    prompt = TASK.prompt(asked, reading(tokenizer))
    assert prompt == TASK.prompt({"messages": [system, *CHAT[:-1]]}, reading(tokenizer))


@pytest.mark.parametrize("history", [None, "", [], "[]"])
def test_without_history_a_row_is_a_pair(tokenizer: Any, history: Any) -> None:
    assert _shown({**PAIR, "history": history}, tokenizer) == _shown(PAIR, tokenizer)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ASKED, "history": [["one"]]}, r"history\[0\] must be a pair \[question, answer\]; got \['one'\]"),
        ({**ASKED, "history": [HISTORY[0], ["more?", ""]]}, r"history\[1\], the assistant's part, is empty"),
        ({**ASKED, "history": "one"}, "history is text but not JSON"),
        ({"messages": CHAT, "history": HISTORY}, "has messages and also history"),
        ({"text": "the dog", "history": HISTORY}, "has text and also history"),
    ],
)
def test_a_history_of_another_form_is_a_bad_row(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        TASK.check(row)


def test_history_needs_a_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template, and the data has conversations"):
        _encode({**ASKED, "history": HISTORY}, tokenizer)
    assert _encode({**ASKED, "history": []}, tokenizer)
