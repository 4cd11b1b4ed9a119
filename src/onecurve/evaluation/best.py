"""The best step so far by a dev metric, and its weights."""

from collections.abc import Callable
from math import isfinite
from typing import Any

from onecurve.config import EvalSection
from onecurve.data.splits import Split
from onecurve.run.lifecycle import due
from onecurve.strategies.average import Average
from onecurve.strategies.base import Strategy
from onecurve.strategies.snapshot import Snapshot
from onecurve.tasks.base import Task


class Best:
    """The best step so far by eval.best_metric, with a copy of its weights; unused without eval.best_metric.

    Args:
        task: Tells which metrics are better when lower.
        section: The recipe's `eval`.
        strategy: Whose weights are kept.
        dev: The dev split, if any.
        average: Of the weights; where there is one, it is what is scored, kept and exported.
    """

    def __init__(
        self, task: Task, section: EvalSection, strategy: Strategy, dev: Split | None, average: Average
    ) -> None:
        self.metric, self.patience, self.every = section.best_metric, section.patience, section.every
        self.dev = (dev.key if dev.sets else dev.examples.folder.name) if dev else ""
        """Fingerprint of the dev examples (their cache key)."""
        self.scoring: dict[str, Any] = task.settings.model_dump(mode="json", include=set(task.scoring_settings))
        """The settings of the task by which it is scored."""
        self._unset = {
            name: type(task.settings).model_fields[name].get_default(call_default_factory=True) for name in self.scoring
        }
        self.sign = -1 if _of_any_set(self.metric, dev) in {"loss", *task.lower_is_better} else 1
        self.snapshot, self.average = Snapshot(strategy), average
        self.settled = False
        """Whether the model no longer has the last step's weights."""
        self._forget()

    def _forget(self) -> None:
        self.step = 0
        """The best step; 0 before the first evaluation."""
        self.value: float | None = None
        self.scores: dict[str, Any] = {}
        """The metric at the best step; before there is one, at the last evaluation."""
        self.without = 0
        """Evaluations since the best step."""
        self.last_step = 0
        self.last_scores: dict[str, Any] = {}

    def consider(self, step: int, scores: dict[str, Any]) -> None:
        """Record the scores after `step`."""
        self.last_step, self.last_scores = step, scores
        if not self.step:
            self.scores = scores
        if self.metric is None:
            return
        value = scores[self.metric]  # it is one of the task's metric_names
        self.without += 1
        if value is None or not isfinite(value):  # undefined, as a correlation with constant predictions is
            return
        if self.value is None or self.sign * value > self.sign * self.value:
            self.step, self.value, self.scores, self.without = step, value, scores, 0
            self.snapshot.take()

    def lacks(self, step: int, max_steps: int) -> bool:
        """Whether the evaluation that is due after `step` was not made, because it failed."""
        return bool(step and self.dev) and due(step, self.every, max_steps) and self.last_step != step

    def state(self) -> dict[str, Any]:
        """The state saved in a checkpoint, besides the weights in the snapshot."""
        names = ("metric", "dev", "scoring", "step", "value", "scores", "without", "last_step", "last_scores")
        return {name: getattr(self, name) for name in names}

    def differs(self, state: dict[str, Any]) -> str:
        """Explain why the best step in a checkpoint's `state` cannot be used in this run; empty if it can.

        Scores of another metric, on other examples or by other settings are not comparable with later ones.
        """
        if state["metric"] != self.metric:
            return f"eval.best_metric was {state['metric']} and is {self.metric}"
        return self._scored_otherwise(state)

    def _scored_otherwise(self, state: dict[str, Any]) -> str:
        """Explain why no score of a `state`, of whatever metric, is comparable with this run's; empty if they are.

        The loss does not depend on `scoring_settings`.
        """
        if state["dev"] != self.dev:
            return "data.eval has other examples"
        if self.metric == "loss":
            return ""
        before = self._unset | {name: value for name, value in state["scoring"].items() if name in self.scoring}
        return "" if before == self.scoring else _change("task", before, self.scoring)

    def load(self, state: dict[str, Any], step: int) -> str:
        """Restore a `state` saved after `step`, with the weights of that step.

        Returns:
            What was dropped, and why; empty if nothing was.
        """
        self._forget()
        why = self.differs(state)
        if not why:
            for name in ("step", "value", "scores", "without", "last_step", "last_scores"):
                setattr(self, name, state[name])
        elif state["last_step"] == step and not self._scored_otherwise(state):  # these very weights were scored
            self.consider(step, state["last_scores"])
        return f"{why}: step {state['step']}, the best so far, is dropped" if why and state["step"] else ""

    def settle(self, last: int, export: Callable[[str, int, dict[str, Any]], None]) -> int:
        """Put what the run has come to in the model for good: the average, or the best step's weights.

        Args:
            last: The run's last step.
            export: Writes `model-last`, the last step's weights (or average), where an earlier step is the best.

        Returns:
            The step whose weights they are.
        """
        self.settled = bool(self.average.kept) or self.step not in (0, last)
        self.average.put()
        if not self.step or self.step == last:
            return last
        export("model-last", last, {"eval": self.last_scores})
        self.snapshot.restore()
        return self.step

    @property
    def exhausted(self) -> bool:
        """Whether there was no improvement for `eval.patience` evaluations."""
        return self.patience is not None and self.without >= self.patience

    def __str__(self) -> str:
        return f"no improvement in {self.without} evaluations: best {self.metric} {self.value} at step {self.step}"


def _of_any_set(metric: str | None, dev: Split | None) -> str | None:
    """Return a metric without the name of the dev set that it is of: `loss` for `tweets/loss`."""
    prefixes = [f"{one.title}/" for one in dev.sets] if dev and metric else []
    return next((metric.removeprefix(prefix) for prefix in prefixes if metric and metric.startswith(prefix)), metric)


def _change(key: str, before: Any, now: Any) -> str:
    """Say what a setting was and is; of a group of settings, the first that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        return _change(f"{key}.{name}", before.get(name), now.get(name))
    return f"{key} was {before} and is {now}"
