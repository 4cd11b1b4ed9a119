"""The PEFT adapter."""

from typing import Any

from pydantic import field_validator

from onecurve.config.sections.base import OpenSection

_FROM_DEFAULT_BASE = (None, True, False, "gaussian", "orthogonal")
"""Values of PEFT's `init_lora_weights` that leave the base as it was; others, such as pissa, take a part out of it."""


class PeftSection(OpenSection):
    method: str
    """A PEFT method (lora, ia3, prefix_tuning, ...) or bottleneck. Extra keys: fields of its PEFT config."""

    @property
    def moves_base(self) -> bool:
        """Whether a new adapter begins with a part of the base's weights, which the base then lacks, as in PiSSA."""
        return self.extras.get("init_lora_weights") not in _FROM_DEFAULT_BASE

    @field_validator("method", mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("must name a method; to train without an adapter, remove the section (--peft null)")
        return value
