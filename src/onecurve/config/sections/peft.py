"""The PEFT adapter."""

from typing import Any

from pydantic import field_validator

from onecurve.config.sections.base import OpenSection


class PeftSection(OpenSection):
    method: str
    """A PEFT method (lora, ia3, prefix_tuning, ...) or bottleneck. Extra keys: fields of its PEFT config."""

    @field_validator("method", mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("must name a method; to train without an adapter, remove the section (--peft null)")
        return value
