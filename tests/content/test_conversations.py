from datetime import date, datetime
from typing import Any

import pytest

from onecurve.content.templates import DATE, CannotRender, chat_template
from tests.launching import ROOT
from tests.tiny_models import CHAT_TEMPLATE

TURNS = [{"role": "user", "content": "what?"}]
LATER = date(2025, 11, 6)
DATED = {
    "a date of the clock's": "Today is {{ strftime_now('%d %b %Y') }}. ",
    "a date where there is a clock": (
        "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{%- else %}{%- set day = 'none' %}"
        "{%- endif %}Today is {{ day }}. "
    ),
    "a date in a macro": (
        "{%- macro today() %}{{ strftime_now(format='%d %b %Y') }}{%- endmacro %}Today is {{ today() }}. "
    ),
    "a date given": "{%- if not date_string is defined %}{%- set date_string = '01 Jan 2000' %}{%- endif %}"
    "Today is {{ date_string }}. ",
}


def render(messages: list[dict[str, str]], tokenizer: Any, day: date) -> str:
    return chat_template(tokenizer, day).render(messages)


def set_clock(monkeypatch: pytest.MonkeyPatch, day: datetime) -> None:
    """Have transformers' own `strftime_now` read this time."""
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return day

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize("opening", DATED.values(), ids=DATED.keys())
def test_a_template_prints_the_date_that_is_given_and_not_the_clocks(
    opening: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.chat_template = opening + CHAT_TEMPLATE
    for year in (2001, 2033):
        set_clock(monkeypatch, datetime(year, 5, 9))
        assert render(TURNS, tokenizer, DATE).startswith("Today is 26 Jul 2024. <|im_start|>user")
        assert render(TURNS, tokenizer, LATER).startswith("Today is 06 Nov 2025. <|im_start|>user")


@pytest.mark.parametrize("opening", ["  {% if true %}\n  x{% endif %}", "\n\n  {%- if true %}x{% endif %}\n", " ", ""])
def test_a_stopped_clock_changes_nothing_but_the_date(
    opening: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "%A %a %-d %d %B %b %y %Y %j %F %D %m/%-m %H:%M:%S %p %U %W %V %% %%d 100%%"
    tokenizer.chat_template = opening + CHAT_TEMPLATE + "{{ strftime_now('" + told + "') }}{{ strftime_now('%d')|int }}"
    set_clock(monkeypatch, datetime(2025, 11, 6))
    assert render(TURNS, tokenizer, LATER) == tokenizer.apply_chat_template(TURNS, tokenize=False)


def test_what_others_render_is_left_alone(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.chat_template = "{{ strftime_now('%Y') }}"
    set_clock(monkeypatch, datetime(2033, 5, 9))
    assert render(TURNS, tokenizer, DATE) == "2024"
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == "2033"
    assert tokenizer.chat_template == "{{ strftime_now('%Y') }}"


def test_a_tokenizer_with_several_templates_and_no_default_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = {"rag": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE}
    with pytest.raises(CannotRender, match="multiple chat templates"):
        render(TURNS, tokenizer, DATE)


def test_what_depends_on_the_template_alone_is_found_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Gemma 3's 6,400 special tokens: to ask for them took ten times as long as all else that a row needs."""
    kind, asked = type(tokenizer), []
    gathered = kind.added_tokens_decoder
    monkeypatch.setattr(kind, "added_tokens_decoder", property(lambda self: asked.append(1) or gathered.fget(self)))
    rendered: list[int] = []
    counts = set()
    monkeypatch.setattr(kind, "apply_chat_template", lambda *_, **__: rendered.append(1) or "answer<|im_end|>")
    for _ in range(3):
        assert chat_template(tokenizer, DATE).ends_with_special("answer<|im_end|>\n".rstrip())
        assert chat_template(tokenizer, DATE).end_of("answer<|im_end|>\n") == len("answer<|im_end|>")
        counts.add(len(rendered))
    assert len(asked) == 1 and len(counts) == 1


def test_nothing_else_renders() -> None:
    found = {path.name for path in (ROOT / "src").rglob("*.py") if "apply_chat_template" in path.read_text("utf-8")}
    assert found == {"templates.py"}
