"""Which changes of a recipe a resumed run accepts, and what they do to its data and its learning rate."""

from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

from onecurve.config import Recipe, RegularizationSection
from onecurve.data.plan import BatchPlan
from onecurve.data.position import stored_position
from onecurve.errors import ConfigError
from onecurve.optim import lr_at
from onecurve.run.differences import LENGTH

_MOVING = ("data", "data.shuffle_window", "data.weights", "seed", "train.global_batch_size")
"""Settings that decide which examples a step has."""

_LATER = {f"regularization.{name}": value for name, value in RegularizationSection().model_dump(mode="json").items()}
"""Settings that checkpoints of earlier versions lack, and what those runs did."""

Changes = dict[str, list[Any]]
"""Setting -> [earlier, now]."""


def allowed_changes(folder: Path, state: Mapping[str, Any], curve: Mapping[str, Any], allowed: list[str]) -> Changes:
    """Compare the settings that decide the curve with those of a checkpoint; a finished run may be made longer.

    Args:
        folder: The checkpoint.
        state: Its state.
        curve: The settings of this launch.
        allowed: The recipe's train.allow_changes.

    Raises:
        ConfigError: A difference is not allowed.
    """
    changes = _differences(state["curve"], curve)
    more = LENGTH if _is_finished(state) else ()
    refused = [key for key in changes if key not in (*allowed, *more)]
    if refused:
        told = "; ".join(f"{key} was {changes[key][0]!r} and is {changes[key][1]!r}" for key in refused)
        raise ConfigError(
            f"resuming from {folder} would change the curve: {told}.",
            where="train.resume",
            fix="Undo that, start again with train.resume never, or set train.allow_changes to "
            f"[{', '.join(refused)}].",
        )
    return changes


def rest_of_plan(plan: BatchPlan, state: Mapping[str, Any], curve: Mapping[str, Any], recipe: Recipe) -> BatchPlan:
    """Plan the rest of the run from the samples that a checkpoint has seen, also where the batch size changed."""
    position = stored_position(state).after_changes(_differences(state["curve"], curve))
    return plan.started_at(position, recipe.train.epochs)


def describe_changes(state: Mapping[str, Any], changes: Changes, plan: BatchPlan, recipe: Recipe) -> Iterator[str]:
    """Yield what allowed changes do to the data and to the learning rate.

    Args:
        state: The checkpoint's.
        changes: What `allowed_changes` returned.
        plan: Of the rest of the run.
        recipe: Of this launch.

    Raises:
        ConfigError: The run is finished, and with these settings stays so.
    """
    told = {key: f"{key} was {before} and is {now}" for key, (before, now) in changes.items()}
    if changes.keys() & set(LENGTH) and _is_finished(state):
        _check_longer(", ".join(told[key] for key in LENGTH if key in told), state, plan, recipe)
    if moving := [told[key] for key in _MOVING if key in told]:
        start = plan.start
        yield (
            f"{'; '.join(moving)}: the run continues after {start.samples:,} samples, in pass {start.epoch + 1} over "
            f"the data, of whose {plan.num_examples:,} examples it has seen {start.offset:,}"
        )
        if plan.mixture:
            yield (
                "each source goes on at the place that its share of all draws so far gives, and until its next pass "
                "some of its examples may come once more or once less than others"
            )
    before = state.get("max_steps", plan.max_steps)
    rates = [lr_at(state["step"] + 1, steps, recipe.optim) for steps in (before, plan.max_steps)]
    if plan.max_steps != before:
        yield (
            f"the run has {plan.max_steps} steps instead of {before}: with optim.schedule {recipe.optim.schedule} the "
            f"learning rate of step {state['step'] + 1} is {rates[1]:.3g}"
            + (f" instead of {rates[0]:.3g}" if state["step"] < before else f"; it was {_last_rate(state, recipe)}")
        )


def _last_rate(state: Mapping[str, Any], recipe: Recipe) -> str:
    step = state["step"]
    return f"{lr_at(step, state['max_steps'], recipe.optim):.3g} in step {step}"


def _check_longer(told: str, state: Mapping[str, Any], plan: BatchPlan, recipe: Recipe) -> None:
    step, patience = state["step"], recipe.eval.patience
    if plan.max_steps <= step:
        raise ConfigError(f"{told}: the run has made {step} steps, and that makes {plan.max_steps}.", where="train")
    if patience is not None and state["best"]["without"] >= patience:
        raise ConfigError(
            f"is {patience}, and ended the run after step {step}.", where="eval.patience", fix="Raise it to train on."
        )


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    earlier = {key: value for key, value in _LATER.items() if key in now} | dict(earlier)
    keys = sorted(earlier.keys() | now.keys())
    return {key: [earlier.get(key), now.get(key)] for key in keys if earlier.get(key) != now.get(key)}


def _is_finished(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is its run's last: of the last step, or where eval.patience ended it."""
    patience = state["recipe"]["eval"].get("patience")
    ended = patience is not None and state["best"].get("without", 0) >= patience
    return ended or state["step"] >= state.get("max_steps", inf)
