"""The PEFT adapter."""

from onecurve.config.sections.base import OpenSection


class PeftSection(OpenSection):
    method: str
    """A PEFT method (lora, ia3, prefix_tuning, ...) or bottleneck. Extra keys: fields of its PEFT config."""
