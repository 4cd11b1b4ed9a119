"""What several trained models say of rows together: the mean of their probabilities, or of their numbers."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee

from onecurve.data.rows import Broken, Located
from onecurve.errors import ConfigError
from onecurve.model.trained import Trained
from onecurve.prediction.answers import answer
from onecurve.tasks.base import Answer, Task, Votes


def check_together(members: Sequence[Trained], names: Sequence[str]) -> None:
    """Check that models can answer together: classifiers or taggers with the same labels, or regressions.

    Args:
        members: The models.
        names: What the user calls each.

    Raises:
        ConfigError: They answer otherwise, or not alike.
    """
    first = members[0]
    for member, name in zip(members, names, strict=True):
        kind = _kind(member.task)
        if not kind or not (member.labels or kind == "regression"):
            raise ConfigError(
                f"{name!r} gives no probabilities of labels and no number, of which a mean could be taken.",
                fix="Ask one model at a time; several answer together as classifiers, taggers or regressions.",
            )
        if (type(member.task), kind) != (type(first.task), _kind(first.task)):
            raise ConfigError(f"{names[0]!r} and {name!r} were trained for different tasks.")
        if set(member.labels) != set(first.labels):
            differing = ", ".join(sorted(set(member.labels) ^ set(first.labels)))
            raise ConfigError(f"{names[0]!r} and {name!r} do not know the same labels: {differing}.")


def _kind(task: Task) -> str:
    return "votes" if isinstance(task, Votes) else getattr(task.settings, "problem_type", "")


def answer_together(
    members: Sequence[Trained], rows: Iterable[Located | Broken], batch_size: int, max_new_tokens: int
) -> Iterator[Answer]:
    """Ask several models about rows, each with its own tokenizer; arguments as of `answer`.

    Yields:
        The answer to each row: label and probabilities by the mean of the models' probabilities, or the mean value;
        of a task that `Votes`, what it elects; `error` where any of them cannot use the row.
    """
    if len(members) == 1:
        yield from answer(members[0], rows, batch_size, max_new_tokens)
        return
    copies = zip(members, tee(rows, len(members)), strict=True)
    told = [answer(member, own, batch_size, max_new_tokens, votes=True) for member, own in copies]
    for answers in zip(*told, strict=True):
        yield mean_of(answers, members[0].task)


def mean_of(answers: Sequence[Answer], task: Task) -> Answer:
    """Return the mean of what several models of a task say of one row, in the words that one of them would use."""
    for one in answers:
        if "error" in one:
            return one
    cut = {"truncated": True} if any("truncated" in one for one in answers) else {}
    if isinstance(task, Votes):
        return {**task.elect(answers), **cut}
    if "value" in answers[0]:
        return {"value": sum(one["value"] for one in answers) / len(answers), **cut}
    names = answers[0]["probabilities"]
    mean = {name: sum(one["probabilities"][name] for one in answers) / len(answers) for name in names}
    if isinstance(answers[0]["label"], list):
        return {"label": [name for name, value in mean.items() if value > 0.5], "probabilities": mean, **cut}
    best = max(mean, key=mean.__getitem__)
    return {"label": best, "probability": mean[best], "probabilities": mean, **cut}
