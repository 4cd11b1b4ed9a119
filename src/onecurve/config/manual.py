"""The text of `train.py --help`: every key with its type, default and meaning, generated from the schema."""

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from onecurve.config.reading import USAGE
from onecurve.config.recipe import Recipe


def manual() -> str:
    """Return the text of `train.py --help`."""
    return "\n".join([USAGE, "", *_lines(Recipe, "")])


def _lines(model: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        if (section := section_of(field)) is not None:
            lines += ["", *_lines(section, f"{prefix}{name}.")]
            continue
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        lines.append(f"  --{prefix}{name}  ({default})\n        {meaning(field)}")
    return lines


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the schema of a section; None for a value."""
    kinds = [k for k in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(k, type)]
    return next((k for k in kinds if issubclass(k, BaseModel)), None)


def meaning(field: FieldInfo) -> str:
    """Return a key's docstring on one line."""
    return " ".join((field.description or "").split())
