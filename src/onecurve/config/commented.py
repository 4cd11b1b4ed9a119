"""A commented starter recipe: chosen values as YAML, each with its key's docstring as a comment."""

from collections.abc import Iterator, Mapping
from io import StringIO
from textwrap import wrap
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML

from onecurve.config.manual import meaning, section_of
from onecurve.config.recipe import Recipe

_WIDTH = 118


def commented_recipe(values: Mapping[str, Any], task_settings: type[BaseModel], notes: Mapping[str, str]) -> str:
    """Write values in the schema's order, with the docstrings of the keys as comments.

    Args:
        values: Sections and keys, as in a recipe. The task's other settings are written with their defaults.
        task_settings: The schema of the task's own keys.
        notes: Dotted key -> an additional comment.
    """
    return "\n".join(_section(Recipe, values, "", {"task": task_settings}, notes)).strip() + "\n"


def _section(
    schema: type[BaseModel],
    values: Mapping[str, Any],
    prefix: str,
    owned: Mapping[str, type[BaseModel]],
    notes: Mapping[str, str],
) -> Iterator[str]:
    indent = "  " * bool(prefix)
    for name, field in schema.model_fields.items():
        section = section_of(field)
        if section is not None:
            if name in values:
                yield from ("", f"{name}:")
                yield from _section(section, values[name], f"{name}.", owned, notes)
                if name in owned:
                    yield from _settings(owned[name], values[name])
        elif name in values:
            for text in (meaning(field), notes.get(f"{prefix}{name}", "")):
                yield from _comment(text, indent)
            yield from _entry(name, values[name], indent)
    known = {*schema.model_fields, *(owned[prefix[:-1]].model_fields if prefix[:-1] in owned else ())}
    for name in values.keys() - known if prefix else ():  # what another part of the package owns, such as PEFT's fields
        yield from _entry(name, values[name], indent)


def _settings(schema: type[BaseModel], values: Mapping[str, Any]) -> Iterator[str]:
    """Write a task's own keys: the given values, else their defaults; null where the user must set one."""
    for name, field in schema.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        yield from _comment(meaning(field) + (" To be set." if field.is_required() else ""), "  ")
        yield from _entry(name, values.get(name, default), "  ")


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(text, _WIDTH - len(indent))]


def _entry(name: str, value: Any, indent: str) -> list[str]:
    text = StringIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    yaml.dump({name: value}, text)
    return [indent + line for line in text.getvalue().splitlines()]
