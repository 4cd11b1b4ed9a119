"""The best steps so far by a dev metric, and their weights."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from onecurve.checkpoint.absent import BEST
from onecurve.config import EvalSection
from onecurve.data.splits import Split
from onecurve.run.lifecycle import due
from onecurve.strategies.average import Average
from onecurve.strategies.base import Strategy, Window
from onecurve.strategies.snapshot import Snapshot, mean_of_weights
from onecurve.tasks.base import Task


@dataclass(frozen=True)
class Kept:
    """A step that is among the best so far."""

    step: int
    value: float
    """Of the metric."""
    weights: Snapshot


class Best:
    """The best step so far by eval.best_metric, with a copy of its weights; unused without eval.best_metric.

    With regularization.average best the best few are kept, and their mean is what the run comes to (as a soup of one
    run's steps: Wortsman et al., Model soups, ICML 2022, section 2).

    Args:
        task: Tells which metrics are better when lower.
        section: The recipe's `eval`.
        strategy: Whose weights are kept.
        dev: The dev split, if any.
        average: Of the weights; where there is one, it is what is scored, kept and exported.
        count: How many steps are kept.
    """

    def __init__(
        self,
        task: Task,
        section: EvalSection,
        strategy: Strategy,
        dev: Split | None,
        average: Average,
        count: int = 1,
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
        self.strategy, self.average, self.count = strategy, average, count
        self.kept: list[Kept] = []
        """The best steps, the best first; of equals, the earlier first."""
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
        self._keep(step, value)

    def _keep(self, step: int, value: float) -> None:
        """Copy the weights where they are among the best; the worst of too many is given up first."""
        if len(self.kept) == self.count:
            if self.sign * value <= self.sign * self.kept[-1].value:
                return
            self.kept.pop()
        weights = Snapshot(self.strategy)
        weights.take()
        self.kept = sorted([*self.kept, Kept(step, value, weights)], key=lambda one: -self.sign * one.value)

    def lacks(self, step: int, max_steps: int) -> bool:
        """Whether the evaluation that is due after `step` was not made, because it failed."""
        return bool(step and self.dev) and due(step, self.every, max_steps) and self.last_step != step

    def state(self) -> dict[str, Any]:
        """The state saved in a checkpoint, besides the weights that are kept."""
        names = ("metric", "dev", "scoring", "step", "value", "scores", "without", "last_step", "last_scores", "count")
        return {name: getattr(self, name) for name in names} | {"kept": [[one.step, one.value] for one in self.kept]}

    def windows(self) -> Iterator[Window]:
        """Yield the weights that are kept as windows, so that they can be saved and loaded like the rest."""
        for number, one in enumerate(self.kept):
            yield from one.weights.windows(f"{BEST}-{number}" if number else BEST)

    def make_room(self, state: dict[str, Any], keys: Collection[str]) -> list[str]:
        """Make room for the best weights that a checkpoint with this `state` holds, which its reader then fills.

        Args:
            state: Its state.
            keys: Of its tensors.

        Returns:
            What the names of its best weights begin with that are not to be read.
        """
        self.kept = []
        stored = sorted(key for key in keys if key.split("-")[0] == BEST)
        if not self.differs(state) and stored:
            for step, value in state.get("kept", [[state["step"], state["value"]]])[: self.count]:
                self.kept.append(Kept(step, value, Snapshot(self.strategy)))
                self.kept[-1].weights.take()
        read = {window.key for window in self.windows()}
        return [f"{key}/" for key in stored if key not in read]

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
        if why:
            return f"{why}: step {state['step']}, the best so far, is dropped" if state["step"] else ""
        before = state.get("count", 1)
        if self.kept and self.count != before and (self.count > 1 or before > 1):
            kept = ", ".join(str(one.step) for one in self.kept)
            return f"the {before} best steps were kept and now are {self.count}; of those before there are {kept}"
        return ""

    def settle(
        self,
        last: int,
        export: Callable[[str, int, dict[str, Any]], None],
        score: Callable[[], dict[str, Any]],
        tell: Callable[[str, int, dict[str, Any]], dict[str, Any]],
    ) -> tuple[int, dict[str, dict[str, Any]]]:
        """Put what the run has come to in the model for good: an average, or the best step's weights.

        Args:
            last: The run's last step.
            export: Writes `model-last`, the last step's weights (or average), where the model is not theirs.
            score: Scores the dev split.
            tell: Records and returns scores.

        Returns:
            The step whose weights they are, of the mean of several the latest; and the scores by split.
        """
        is_last = [one.step for one in self.kept] in ([], [last])
        self.settled = bool(self.average.kept) or not is_last
        self.average.put()
        chosen = max((one.step for one in self.kept), default=last)
        if is_last:
            return last, {"eval": self.scores}
        export("model-last", last, {"eval": self.last_scores})
        names = self.kept[0].weights.kept
        mean = {name: mean_of_weights([one.weights.kept[name] for one in self.kept]) for name in names}
        Snapshot(self.strategy, mean).restore()
        if len(self.kept) > 1:
            steps = sorted(one.step for one in self.kept)
            self.scores = tell("average", chosen, {**score(), "averaged_steps": steps})
        return chosen, {"eval": self.scores}

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
