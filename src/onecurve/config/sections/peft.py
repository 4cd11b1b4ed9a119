"""The adapter, where not every weight is trained."""

from onecurve.config.sections.base import OpenSection


class PeftSection(OpenSection):
    method: str
    """A PEFT type (lora, ia3, prefix_tuning, ..., bottleneck). Further keys are that method's own fields in PEFT."""
