"""What tasks share that render conversations: the settings of a chat template, and the template as they set it."""

from datetime import date as Date
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from onecurve.content.templates import DATE, ChatTemplate, chat_template
from onecurve.errors import ConfigError
from onecurve.tasks.base import Settings

_OURS = {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}


def _read_date(value: Any) -> Date:
    # YAML has a type of its own for 2024-07-26, which text in quotes and a saved recipe lack
    if type(value) is Date:
        return value
    try:
        return Date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"must be a date such as {DATE}; got {value!r}") from None


def _check_variables(value: Any) -> Any:
    if isinstance(value, dict) and (taken := sorted(_OURS.intersection(value))):
        raise ValueError(f"must not have {', '.join(taken)}: a run sets it itself")
    return value


class TemplateSettings(Settings):
    """The settings of a task that renders conversations."""

    separator: str = "\n"
    """Text between prompt and response if the tokenizer has no chat template."""
    date: Annotated[Date, BeforeValidator(_read_date)] = DATE
    """Date for chat templates that print today's date, so that the examples are the same every day."""
    template_kwargs: Annotated[dict[str, Any], BeforeValidator(_check_variables)] = Field(default_factory=dict)
    """Further variables for the chat template, such as {enable_thinking: false}."""


def template_of(tokenizer: Any, settings: Any) -> ChatTemplate:
    """Return the tokenizer's chat template with the variables that the settings give it.

    Raises:
        ConfigError: A variable that the template does not read.
    """
    template = chat_template(tokenizer, settings.date, settings.template_kwargs)
    if unknown := [name for name in settings.template_kwargs if not template.mentions(name)]:
        raise ConfigError(f"this model's chat template does not read {unknown[0]}.", where="task.template_kwargs")
    return template
