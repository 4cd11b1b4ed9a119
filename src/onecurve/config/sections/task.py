"""What is learnt."""

from onecurve.config.sections.base import OpenSection


class TaskSection(OpenSection):
    name: str
    """A file of `onecurve/tasks/`, such as text_classification, causal_lm, sft. Further keys are the task's own."""
