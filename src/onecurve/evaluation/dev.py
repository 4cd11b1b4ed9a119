"""Scores the dev split after those steps that the recipe says, and keeps the best of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from onecurve.data.loader import Loader
from onecurve.evaluation.best import Best
from onecurve.evaluation.scores import Evaluator
from onecurve.run.lifecycle import due
from onecurve.tracking import Tracker


@dataclass(frozen=True)
class Dev:
    """The dev split, in a run; every rank makes the same calls."""

    evaluate: Evaluator
    best: Best
    tracker: Tracker
    loaders: Mapping[str, Loader]

    def after(self, step: int, max_steps: int) -> bool:
        """Score it if it is due after `step`; return whether it was."""
        is_due = "eval" in self.loaders and due(step, self.evaluate.recipe.eval.every, max_steps)
        if is_due:
            self._score(step)
        return is_due

    def catch_up(self, step: int) -> None:
        """Score it after the `step` of a checkpoint that was saved because that had failed; 0: it had not."""
        if step and "eval" in self.loaders:
            self._score(step)

    def _score(self, step: int) -> None:
        with self.best.average.in_place():
            self.best.consider(step, self.tracker.scores("eval", step, self.evaluate(self.loaders["eval"])))
