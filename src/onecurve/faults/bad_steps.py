"""Bad steps (non-finite or a loss spike): stop with a black box, skip the step, or rewind and skip it."""

from dataclasses import dataclass
from typing import Any

from onecurve.data.plan import Step
from onecurve.errors import TrainingError
from onecurve.faults.blackbox import BlackBox
from onecurve.resume import Checkpoints
from onecurve.tracking import Tracker

_WHAT = {"loss": "the loss is not finite", "gradient": "the gradient is not finite", "spike": "the loss is a spike"}


@dataclass(frozen=True)
class BadSteps:
    """Handles a bad step as the recipe says; called on every rank, before any update.

    Rewinding and skipping the batches that led to a spike follows Chowdhery et al., PaLM: Scaling language modeling
    with Pathways, 2022, section 5.1.
    """

    checkpoints: Checkpoints
    tracker: Tracker
    black_box: BlackBox

    def __call__(self, step: Step, outcome: dict[str, Any]) -> int:
        """Handle a bad step.

        Args:
            step: The step.
            outcome: What `train_step` returned.

        Returns:
            The step that the run continues after: this one, skipped, or that of the checkpoint it went back to.

        Raises:
            TrainingError: The run stops here.
        """
        fault, history, section = outcome["fault"], self.checkpoints.history, self.checkpoints.recipe.train
        if step.number in history.left_out:  # and reached again
            self.tracker.skipped(step.number, _WHAT[fault], sample_ids=step.sample_ids.tolist())
            return step.number
        answer = section.on_spike if fault == "spike" else section.on_nonfinite
        if answer == "stop":
            raise self._stop(step, outcome)
        history.left_out[step.number] = fault
        if history.in_a_row(step.number) > section.max_skipped:
            raise self._stop(step, outcome, f"More than train.max_skipped ({section.max_skipped}) skipped in a row. ")
        if answer == "rewind":
            return self._rewind(step, outcome)
        self.tracker.skipped(step.number, _WHAT[fault], **_facts(step, outcome))
        return step.number

    def _rewind(self, step: Step, outcome: dict[str, Any]) -> int:
        history, why = self.checkpoints.history, _WHAT[outcome["fault"]]
        left_out = dict(history.left_out)
        earlier = self.checkpoints.rewind()
        if earlier is None:
            raise self._stop(step, outcome, "There is no checkpoint to go back to: set checkpoint.every. ")
        history.left_out = left_out
        why = f"step {step.number}: {why}"
        self.tracker.went_back(earlier, why, from_step=step.number, **_facts(step, outcome))
        return earlier

    def _stop(self, step: Step, outcome: dict[str, Any], why: str = "") -> TrainingError:
        self.checkpoints.wait(needed=False)
        findings = self.black_box.write(step, outcome)
        key = "on_spike" if outcome["fault"] == "spike" else "on_nonfinite"
        return TrainingError(
            f"step {step.number}: {_WHAT[outcome['fault']]} (loss {outcome['loss']:.6g}); {findings} "
            f"Nothing was updated. {why}"
            "Lower optim.lr, raise optim.warmup_steps, fix the samples, or launch again with "
            f"train.{key} skip or rewind."
        )


def _facts(step: Step, outcome: dict[str, Any]) -> dict[str, Any]:
    told = ("loss", "lr", "num_items", "num_samples", "sample_digest")
    facts = {name: outcome[name] for name in told} | {"sample_ids": step.sample_ids.tolist()}
    return facts | ({"ranks": outcome["ranks"]} if outcome["ranks"] else {})
