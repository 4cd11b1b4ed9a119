"""What is learnt of a conversation under templates with the traits of real ones."""

from typing import Any

import pytest

from onecurve.errors import ConfigError
from onecurve.tasks.base import IGNORE_INDEX, TALLY, BadRow, Survey
from onecurve.tasks.sft import SftSettings, Task
from tests.content import traits
from tests.readings import reading

SYSTEM = {"role": "system", "content": "be short"}
CHAT = [
    {"role": "user", "content": "what is the answer?"},
    {"role": "assistant", "content": "there is no answer."},
    {"role": "user", "content": "and the question?"},
    {"role": "assistant", "content": "none."},
]
THOUGHT = [
    {**turn, "content": f"<think>\nhm.\n</think>\n\n{turn['content']}"} if turn["role"] == "assistant" else turn
    for turn in CHAT
]
CONVERSATIONS = {
    "one turn": CHAT[:2],
    "two turns": CHAT,
    "system, one turn": [SYSTEM, *CHAT[:2]],
    "system, two turns": [SYSTEM, *CHAT],
    "reasoning": THOUGHT,
    "an empty system turn": [{"role": "system", "content": ""}, *CHAT],
}


def encode(row: Any, tokenizer: Any, **settings: Any) -> list[dict[str, Any]]:
    task = Task(SftSettings(**settings))
    row = row if isinstance(row, dict) else {"messages": row}
    task.check(row)
    return task.encode(row, Survey(), reading(tokenizer, 4096), truncate=False)


def shown(row: Any, tokenizer: Any, **settings: Any) -> list[str]:
    task = Task(SftSettings(**settings))
    return [task.describe(example, Survey(), tokenizer) for example in encode(row, tokenizer, **settings)]


def learnt(example: dict[str, Any], tokenizer: Any) -> list[tuple[str, str]]:
    """Each answer of an example, with the text before it."""
    ids, labels = example["input_ids"], [*example["labels"], IGNORE_INDEX]
    edges = [n for n in range(len(labels)) if (labels[n] == IGNORE_INDEX) != (n == 0 or labels[n - 1] == IGNORE_INDEX)]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:end])) for start, end in pairs]


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("template", traits.TRAITS.values(), ids=traits.TRAITS.keys())
def test_each_answer_follows_what_the_model_is_given_and_ends_with_its_end_token(
    template: str, messages: list[dict[str, str]], tokenizer: Any
) -> None:
    """The oracle is transformers' own rendering of the prompt for each answer."""
    tokenizer.chat_template = template
    found = dict(pair for example in encode(messages, tokenizer) for pair in learnt(example, tokenizer))
    given = messages
    if template == traits.NO_SYSTEM and messages[0]["role"] == "system":
        first = "\n\n".join(filter(None, [messages[0]["content"], messages[1]["content"]]))
        given = [{"role": "user", "content": first}, *messages[2:]]
    places = [n for n, message in enumerate(given) if message["role"] == "assistant"]
    assert len(found) == len(places)
    for place in places:
        before = given[:place]
        if template == traits.TEXT_IN_PARTS:
            before = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in before]
        prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        prompt += "note:\n" * (template == traits.MASKED_WITHOUT_END)
        answer = found[prompt]
        assert answer.endswith(("<|im_end|>", "<|end|>")) and answer.count("<|") == 1
        said = given[place]["content"].rpartition("</think>")[2].strip()
        assert answer.rpartition("<|")[0].endswith(said)
        assert ("hm." in answer) == ("hm." in given[place]["content"])


def test_answers_share_an_example_where_the_template_only_appends(tokenizer: Any) -> None:
    for template in (traits.CHAT_TEMPLATE, traits.ENDS_ONCE, traits.MASKED, traits.OPENS_NEXT_TURN, traits.NO_SYSTEM):
        tokenizer.chat_template = template
        assert len(encode([SYSTEM, *CHAT], tokenizer)) == 1
    for template in (traits.DROPS_REASONING, traits.OTHER_END_LAST, traits.SYSTEM_AT_END):
        tokenizer.chat_template = template
        assert len(encode([SYSTEM, *CHAT], tokenizer)) == 2


def test_an_answer_is_one_of_several_examples_where_earlier_turns_change(tokenizer: Any) -> None:
    tokenizer.chat_template = traits.DROPS_REASONING
    asked = "<|im_start|>user\nwhat is the answer?<|im_end|>\n<|im_start|>assistant\n"
    assert shown(THOUGHT, tokenizer) == [
        f"{asked}«<think>\nhm.\n</think>\n\nthere is no answer.<|im_end|>»\n",
        f"{asked}there is no answer.<|im_end|>\n<|im_start|>user\nand the question?<|im_end|>\n<|im_start|>assistant\n"
        "«<think>\nhm.\n</think>\n\nnone.<|im_end|>»\n",
    ]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_may_have_a_key_of_its_own(key: str, tokenizer: Any) -> None:
    tokenizer.chat_template = traits.DROPS_REASONING
    keyed = [{**m, key: "hm."} if m["role"] == "assistant" else m for m in CHAT]
    assert shown(keyed, tokenizer) == shown(THOUGHT, tokenizer)
    tokenizer.chat_template = traits.OPENS_REASONING
    assert shown(keyed, tokenizer) == shown(THOUGHT, tokenizer)


def test_reasoning_is_learnt_behind_a_prompt_that_opens_it(tokenizer: Any) -> None:
    tokenizer.chat_template = traits.OPENS_REASONING
    asked = "<|im_start|>user\nwhat is the answer?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert shown(THOUGHT[:2], tokenizer) == [f"{asked}«hm.\n</think>\n\nthere is no answer.<|im_end|>»\n"]
    # and without reasoning, the model learns to close it: otherwise the answer would count as reasoning
    assert shown(CHAT[:2], tokenizer) == [f"{asked}«\n</think>\n\nthere is no answer.<|im_end|>»\n"]


def test_reasoning_that_a_mask_leaves_out_is_read_and_not_learnt(tokenizer: Any) -> None:
    tokenizer.chat_template = traits.DROPS_REASONING.replace(
        "{{ parts[-1].strip() }}<|im_end|>", "{% generation %}{{ parts[-1].strip() }}<|im_end|>{% endgeneration %}"
    )
    asked = "<|im_start|>user\nwhat is the answer?<|im_end|>\n<|im_start|>assistant\n"
    assert shown(THOUGHT[:2], tokenizer) == [f"{asked}<think>\nhm.\n</think>\n\n«there is no answer.<|im_end|>»"]


def test_reasoning_that_a_template_would_not_write_is_refused(tokenizer: Any) -> None:
    keyed = [CHAT[0], {**CHAT[1], "reasoning_content": "hm."}]
    with pytest.raises(BadRow, match=r"messages\[1\] has reasoning_content, which this model's chat template does not"):
        encode(keyed, tokenizer)
    tokenizer.chat_template = traits.DROPS_REASONING.replace("\n{% endif %}", "\n<think>\n\n</think>\n\n{% endif %}")
    with pytest.raises(BadRow, match=r"messages\[1\] has reasoning, but the generation prompt closes it"):
        encode(THOUGHT[:2], tokenizer)


@pytest.mark.parametrize(
    ("template", "phrases"),
    [
        (traits.CHAT_TEMPLATE, {"answers by the difference of two renderings": 2}),
        (traits.MASKED, {"answers by the template's generation mask": 2}),
        (
            traits.OPENS_REASONING,
            {
                "answers by a sentinel in their place": 2,
                "answers without reasoning, which begin by closing the prompt's <think>": 2,
                "rows made into several examples": 1,
            },
        ),
        (
            traits.NO_SYSTEM,
            {
                "answers by the difference of two renderings": 2,
                "system turns put before the first question, as the template has none": 1,
            },
        ),
    ],
)
def test_how_answers_were_found_is_counted(template: str, phrases: dict[str, int], tokenizer: Any) -> None:
    tokenizer.chat_template = template
    counted: dict[str, int] = {}
    for example in encode([SYSTEM, *CHAT], tokenizer):
        counted = {key: counted.get(key, 0) + example[TALLY].get(key, 0) for key in counted | example[TALLY]}
    assert counted == phrases


def test_keys_that_the_template_does_not_read_are_named(tokenizer: Any) -> None:
    stamped = [{**turn, "timestamp": 3, "name": "fox", "extra": None} for turn in CHAT]
    (example,) = encode(stamped, tokenizer)
    assert example[TALLY]["conversations whose key 'timestamp' is not read"] == 1
    assert not any("extra" in phrase or "name" in phrase for phrase in example[TALLY])
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ message.role", "{{ message.timestamp }}{{ message.role"
    )
    assert "3user" in shown(stamped, tokenizer)[0]


# Which answers


@pytest.mark.parametrize(
    ("learn", "marks", "expected"),
    [
        ("all", {}, ["there is no answer.", "none."]),
        ("last", {}, ["none."]),
        ("marked", {}, []),
        ("all", {1: {"train": False}}, ["none."]),
        ("all", {1: {"weight": 0}, 3: {"weight": 1}}, ["none."]),
        ("last", {3: {"weight": 0.0}}, []),
        ("marked", {1: {"train": True}}, ["there is no answer."]),
        ("marked", {1: {"weight": 1}, 3: {"train": False}}, ["there is no answer."]),
    ],
)
def test_which_answers_are_learnt(
    learn: str, marks: dict[int, dict[str, Any]], expected: list[str], tokenizer: Any
) -> None:
    messages = [{**turn, **marks.get(place, {})} for place, turn in enumerate(CHAT)]
    examples = encode(messages, tokenizer, learn=learn)
    assert [text for e in examples for _, text in learnt(e, tokenizer)] == [f"{text}<|im_end|>" for text in expected]


@pytest.mark.parametrize(
    ("mark", "why"),
    [
        ({1: {"weight": 0.5}}, r"messages\[1\].weight must be 0 or 1 .*got 0.5"),
        ({0: {"train": True}}, r"messages\[0\].train is True, but only an assistant turn"),
        ({1: {"train": True, "weight": 0}}, r"messages\[1\] has train and weight, which disagree"),
    ],
)
def test_a_mark_that_cannot_be_kept_is_refused(mark: dict[int, dict[str, Any]], why: str) -> None:
    messages = [{**turn, **mark.get(place, {})} for place, turn in enumerate(CHAT)]
    with pytest.raises(BadRow, match=why):
        Task(SftSettings()).check({"messages": messages})


def test_an_assistant_turn_that_nobody_asked_for_is_read_and_not_learnt(tokenizer: Any) -> None:
    greeting = {"role": "assistant", "content": "good day!"}
    (text,) = shown([SYSTEM, greeting, *CHAT[:2]], tokenizer)
    assert "\ngood day!<|im_end|>" in text and text.count("«") == 1
    (text,) = shown([{**greeting, "train": True}, *CHAT[:2]], tokenizer)
    assert "«good day!<|im_end|>»" in text


# Content


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
TOOL = {"type": "function", "function": {"name": "look", "description": "looks up"}}
CALLED = [
    CHAT[0],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "blue", "tool_call_id": "c1"},
    CHAT[1],
]


@pytest.mark.parametrize("tools", [[TOOL], [TOOL["function"]], '[{"name": "look", "description": "looks up"}]'])
def test_tools_and_their_calls_are_rendered_and_calls_learnt(tools: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = traits.TOOLS
    (text,) = shown({"messages": CALLED, "tools": tools}, tokenizer)
    assert text == (
        '<|im_start|>system\n{"type": "function", "function": {"name": "look", "description": "looks up"}}<|im_end|>\n'
        "<|im_start|>user\nwhat is the answer?<|im_end|>\n<|im_start|>assistant\n"
        '«<call>{"name": "look", "arguments": {"at": "sky"}}</call><|im_end|>»\n'
        "<|im_start|>tool\nblue<|im_end|>\n<|im_start|>assistant\n«there is no answer.<|im_end|>»\n"
    )


def test_a_template_that_wants_arguments_as_text_gets_them(tokenizer: Any) -> None:
    tokenizer.chat_template = traits.TOOLS_AS_TEXT
    (text,) = shown({"messages": CALLED, "tools": [TOOL]}, tokenizer)
    assert '«<call>look {"at": "sky"}</call><|im_end|>»' in text


def test_of_several_templates_the_one_for_tools_is_taken_where_a_row_has_tools(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": traits.CHAT_TEMPLATE, "tool_use": traits.TOOLS}
    assert "<call>" in shown({"messages": CALLED, "tools": [TOOL]}, tokenizer)[0]
    assert shown(CHAT, tokenizer)[0].count("«") == 2
    tokenizer.chat_template = {"rag": traits.CHAT_TEMPLATE, "tool_use": traits.TOOLS}
    with pytest.raises(BadRow, match="multiple chat templates"):
        encode(CHAT, tokenizer, template_kwargs={"enable_thinking": False})


def test_columnar_files_fill_up_with_nulls_and_nothing_of_them_is_rendered(tokenizer: Any) -> None:
    tokenizer.chat_template = traits.TOOLS
    filled = {"name": "look", "arguments": {"at": "sky", "to": None}}
    messages = [{**turn, "name": None} for turn in CALLED]
    messages[1] = {**messages[1], "tool_calls": [{"id": "c1", "type": "function", "function": filled}]}
    tool = {"type": "function", "function": {**TOOL["function"], "strict": None}}
    plain = {"messages": CALLED, "tools": [TOOL]}
    assert shown({"messages": messages, "tools": [tool]}, tokenizer) == shown(plain, tokenizer)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": CALLED}, r"leaves out messages\[1\].tool_calls. Set model.chat_template"),
        ({"messages": CHAT, "tools": [TOOL]}, r"leaves out the tools. To ignore them, set data.columns.tools to ''"),
    ],
)
def test_what_a_template_leaves_out_is_refused(row: dict[str, Any], why: str, tokenizer: Any) -> None:
    with pytest.raises(BadRow, match=why):
        encode(row, tokenizer)


def test_a_turn_that_a_template_leaves_out_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}"
    )
    messages = [CHAT[0], {"role": "tool", "content": "blue"}, CHAT[1]]
    with pytest.raises(BadRow, match=r"leaves out messages\[1\], of role tool. Remove it, or"):
        encode(messages, tokenizer)


def test_a_developer_is_the_system_where_the_template_knows_none(tokenizer: Any) -> None:
    developer = {"role": "developer", "content": "be short"}
    assert shown([developer, *CHAT], tokenizer) == shown([SYSTEM, *CHAT], tokenizer)
    tokenizer.chat_template = "{# developer #}" + tokenizer.chat_template
    assert shown([developer, *CHAT], tokenizer)[0].startswith("<|im_start|>developer\nbe short")


def test_text_in_several_parts_is_put_together_and_other_parts_are_refused(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "what is "}, {"type": "text", "text": "the answer?", "image": None}]
    assert shown([{"role": "user", "content": parts}, CHAT[1]], tokenizer) == shown(CHAT[:2], tokenizer)
    image = [{"role": "user", "content": [*parts, {"type": "image", "url": "a.png"}]}, CHAT[1]]
    with pytest.raises(BadRow, match=r"messages\[0\].content\[2\] is of type image; only text can be learnt from"):
        encode(image, tokenizer)


# Shapes


def test_sharegpt_is_read_as_messages(tokenizer: Any) -> None:
    tokenizer.chat_template = traits.TOOLS
    turns = [
        {"from": "human", "value": "what is the answer?"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "sky"}}'},
        {"from": "observation", "value": "blue"},
        {"from": "gpt", "value": "there is no answer."},
    ]
    plain = {"messages": [SYSTEM, *CALLED], "tools": [TOOL]}
    row = {"messages": turns, "system": "be short", "tools": '[{"name": "look", "description": "looks up"}]'}
    assert shown(row, tokenizer) == shown(plain, tokenizer)
    with pytest.raises(BadRow, match=r"messages\[0\].from must be one of .*got 'me'"):
        encode([{"from": "me", "value": "hello"}], tokenizer)


def test_prompt_and_response_may_be_messages_of_which_only_the_response_is_learnt(tokenizer: Any) -> None:
    (text,) = shown({"prompt": CHAT[:3], "response": CHAT[3:]}, tokenizer)
    assert text.endswith(
        "there is no answer.<|im_end|>\n<|im_start|>user\nand the question?<|im_end|>\n"
        "<|im_start|>assistant\n«none.<|im_end|>»\n"
    )
    assert text.count("«") == 1
    assert shown({"prompt": CHAT[0]["content"], "response": CHAT[1:2]}, tokenizer) == shown(CHAT[:2], tokenizer)


def test_a_text_alone_is_learnt_whole_and_beside_messages_not_read(tokenizer: Any) -> None:
    assert shown({"text": "the dog"}, tokenizer) == ["<|begin|>«the dog<|end|>»"]
    assert shown({"text": "<|begin|>the dog<|end|>"}, tokenizer) == ["<|begin|>«the dog<|end|>»"]
    with pytest.raises(BadRow, match=r"has text and also system, .* set data.columns.system to ''"):
        encode({"text": "the dog", "system": "be short"}, tokenizer)
    (example,) = encode({"messages": CHAT, "text": "the dog"}, tokenizer)
    assert example[TALLY]["rows whose text is not read, as they have more"] == 1


def test_a_prompt_that_only_repeats_the_first_question_is_no_second_form(tokenizer: Any) -> None:
    assert shown({"messages": CHAT, "prompt": CHAT[0]["content"]}, tokenizer) == shown(CHAT, tokenizer)


def test_a_system_prompt_is_given_once(tokenizer: Any) -> None:
    assert shown({"messages": CHAT, "system": "be short"}, tokenizer) == shown([SYSTEM, *CHAT], tokenizer)
    with pytest.raises(BadRow, match="has a system turn and also system"):
        encode({"messages": [SYSTEM, *CHAT], "system": "be short"}, tokenizer)


# The template's own variables


def test_variables_of_the_template_are_given_and_change_what_is_learnt(tokenizer: Any) -> None:
    tokenizer.chat_template = traits.THINKS
    assert "assistant\n«none." in shown([CHAT[2], CHAT[3]], tokenizer)[0]
    (text,) = shown([CHAT[2], CHAT[3]], tokenizer, template_kwargs={"enable_thinking": False})
    assert text.endswith("assistant\n<think>\n\n</think>\n\n«none.<|im_end|>»\n")


def test_a_variable_that_the_template_does_not_read_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"task.template_kwargs: this model's chat template does not read enable_th"):
        encode(CHAT, tokenizer, template_kwargs={"enable_thinking": False})
