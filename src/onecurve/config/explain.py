"""Turns pydantic's errors into plain messages: the setting, the rule, the value."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from onecurve.config.sections.sources import NAMED, PLAIN, NamedSet, NamedSource
from onecurve.config.suggest import meant, nearest
from onecurve.errors import ConfigError

_UNKNOWN = "extra_forbidden"
_RULES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text (quote it if it looks like something else)",
    "dict_type": "must be a map of names to values",
    "list_type": "must be a list, such as [a, b]",
    "time_delta_parsing": "must be a number of seconds, or HH:MM:SS",
    "model_type": "must be a section with keys",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
}


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key a schema knows, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from known_keys(kind, f"{prefix}{name}.")


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> ConfigError:
    """Turn pydantic's errors into one message, one line per error.

    Args:
        error: The error that validating `model` raised.
        model: The schema that was validated.
        prefix: The schema's place in the recipe, such as `task.`.
    """
    findings = error.errors()
    unknown = {str(finding["loc"][-1]): finding["input"] for finding in findings if finding["type"] == _UNKNOWN}
    return ConfigError("\n".join(_line(finding, model, prefix, unknown) for finding in findings))


def _line(finding: Any, model: type[BaseModel], prefix: str, unknown: Mapping[str, Any]) -> str:
    key = prefix + ".".join(str(part) for part in finding["loc"] if part not in (PLAIN, NAMED))
    value, kind = finding["input"], finding["type"]
    if kind == _UNKNOWN:
        if NAMED in finding["loc"]:
            schema = NamedSource if "train" in finding["loc"] else NamedSet
            return f"Unknown setting '{key}'. {nearest(key, known_keys(schema, key.rpartition('.')[0] + '.'))}"
        return f"Unknown setting '{key}'. {meant(key, known_keys(model, prefix), unknown)}"
    if kind == "missing":
        return f"Missing setting '{key}': it has no default."
    if kind == "value_error":  # raised by the schema's own checks: already a plain message
        place = key if finding["loc"] else prefix.rstrip(".")
        text = (f"{place}: " if place else "") + str(finding["ctx"]["error"])
        return text if text.endswith((".", "?")) else f"{text}."
    if kind == "model_type" and (inside := [name for name in known_keys(model, prefix) if name.startswith(f"{key}.")]):
        return f"{key}: is a section: set {inside[0]}, ...; got {value!r}."
    if isinstance(value, timedelta):
        value = value.total_seconds()
    rule = _RULES.get(kind) or finding["msg"].removeprefix("Input ").replace("should", "must")
    return f"{key}: {rule}; got {value!r}."
