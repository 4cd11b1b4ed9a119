"""The recipe's manual: every key with its type, its default and what it means, read off the schema."""

from pydantic import BaseModel

from onecurve.config.reading import USAGE
from onecurve.config.recipe import Recipe


def manual() -> str:
    """Return the text of `train.py --help`."""
    return "\n".join([USAGE, "", *_lines(Recipe, "")])


def _lines(model: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        kinds = [k for k in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(k, type)]
        section = next((k for k in kinds if issubclass(k, BaseModel)), None)
        if section is not None:
            lines += ["", *_lines(section, f"{prefix}{name}.")]
            continue
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        meaning = " ".join((field.description or "").split())
        lines.append(f"  --{prefix}{name}  ({default})\n        {meaning}")
    return lines
