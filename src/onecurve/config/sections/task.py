"""The task."""

from onecurve.config.sections.base import OpenSection


class TaskSection(OpenSection):
    name: str
    """A file of `onecurve/tasks/`, or your own my_file.py:Task or package.module:Task. Extra keys are task settings."""
