"""Which tasks can be heads of one model, the settings of a head, and what its rows share with the others'."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field

from onecurve.config import TaskSection, refuse_without_effect
from onecurve.errors import ConfigError
from onecurve.tasks import load_task
from onecurve.tasks._heads import Head
from onecurve.tasks.base import Annotates, Asked, Generates, Settings, Task, Transforms


class HeadSettings(Settings):
    """One head. Extra keys are settings of its task."""

    model_config = ConfigDict(extra="allow")

    name: str
    """Its task: a file of `onecurve/tasks/`, or your own my_file.py:Task."""
    weight: float = Field(default=1.0, gt=0)
    """Of its loss in the sum of all heads'."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Its task's columns -> the row's. Absent: labels stand in a column of the head's name."""

    @property
    def extras(self) -> dict[str, Any]:
        """The settings of its task."""
        return dict(self.__pydantic_extra__ or {})


def load_head(name: str, settings: HeadSettings) -> Head:
    """Load a head's task.

    Raises:
        ConfigError: As `load_task` does, by the head's place in the recipe; or a task that cannot be a head.
    """
    key = f"task.heads.{name}"
    task = load_task(TaskSection(name=settings.name, **settings.extras), key, HeadSettings)
    if why := unfit(task):
        raise ConfigError(f"{settings.name} cannot be one of several heads: {why}.", where=f"{key}.name")
    known = [column.removesuffix("?") for column in task.columns]
    for column in settings.columns:
        if column not in known:
            raise ConfigError(
                f"{settings.name} reads no column {column!r}; its columns are {', '.join(known)}.",
                where=f"{key}.columns",
            )
    targets = [column for column in known if column in task.targets]
    own = {column: name for column in targets} if len(targets) == 1 else {}
    head = Head(name, task, {column: column for column in known} | own | dict(settings.columns), settings.weight)
    ineffective = {key: why for key, why in task.without_effect().items() if key.startswith("task.")}
    try:
        refuse_without_effect({"task": task.settings}, ineffective)
    except ConfigError as error:
        raise ConfigError(head.placed(error.what)) from None
    return head


def inputs_of(head: Head) -> list[str]:
    return [column for column in head.columns if column not in head.task.targets]


def shared_inputs(heads: Sequence[Head]) -> dict[str, str]:
    """Return the input columns of a row: those that each head reads; an optional one only where all heads read it.

    Raises:
        ConfigError: One head reads a column that another does not.
    """
    first, *others = heads
    for head in others:
        needed = [{column for column in one.inputs if not column.endswith("?")} for one in (first, head)]
        if needed[0] != needed[1]:
            reads = [", ".join(sorted(columns)) for columns in needed]
            mapped = next(iter(inputs_of(head)))
            raise ConfigError(
                f"reads {reads[1]}, and {first.name} reads {reads[0]}; all heads must read the same input.",
                where=f"{head.key}.columns",
                fix=f"Where a text is the words that another head reads, name its column: {{{mapped}: {reads[0]}}}.",
            )
    if not any(all(head.columns[column] == column for column in inputs_of(head)) for head in heads):
        raise ConfigError(
            "no head reads the input under its task's own name for it.",
            where=f"{first.key}.columns",
            fix="Remove the input here, and map it in data.columns.",
        )
    own = next(head for head in heads if all(head.columns[column] == column for column in inputs_of(head)))
    return {column: what for column, what in own.inputs.items() if all(column in head.inputs for head in heads)}


def unfit(task: Task) -> str:
    """Return why a task cannot be one of several heads; empty where it can."""
    files = " and ".join(sorted(set(task.media.values())))
    reasons = {
        "its model writes text, and a head answers in one pass": isinstance(task, Generates),
        "its models are asked something else than what its examples hold": isinstance(task, Asked),
        "its examples are made anew each time that they are read, which heads cannot share": isinstance(
            task, Transforms
        ),
        f"it reads {files} files; heads share a text": bool(files),
        "what it learns from, a frozen model says of each example, and heads share their examples": isinstance(
            task, Annotates
        ),
        "its loss has several terms of its own": len(task.terms) > 1,
        "it has no answer for a row": type(task).answers is Task.answers,
        "it changes the model that it is given, and heads share one": type(task).settle is not Task.settle,
    }
    return next((why for why, holds in reasons.items() if holds), "")


def unfit_model(task: Task) -> str:
    """Return why a task's kind of model cannot share a backbone; empty where it can. Imports transformers."""
    kind, reader = task.auto_model(), task.auto_processor().__name__
    if reader != "AutoTokenizer":
        return f"its rows are read by {reader}; heads share a text"
    import transformers

    if getattr(transformers, kind.__name__, None) is not kind or not hasattr(kind, "_model_mapping"):
        return f"its model is a {kind.__name__}, which is none of transformers' auto classes"
    return ""
