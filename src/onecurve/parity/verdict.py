"""Whether a launch form gives the curve of one process, and the first step at which they differ."""

from dataclasses import dataclass
from pathlib import Path

from onecurve.parity.distance import Distance, Largest, distance, first_moment, largest, moved, relative, same_samples
from onecurve.parity.running import Launched

NORM_FACTOR = 10
"""The gradient norm may differ by so many tolerances: noise in the weights moves it more than it moves the loss."""


@dataclass(frozen=True)
class Parting:
    """The first step at which a run is past the tolerance."""

    step: int
    measure: str
    """samples, loss, gradient or grad_norm."""
    value: float | None
    """The relative difference; None for samples."""
    tensor: str | None = None
    """The one whose difference contributes most at that step; None where no checkpoint could be had."""
    kind: str | None = None
    """What of it was compared: the optimizer's first moment, else the parameter."""
    share: float | None = None
    """That tensor's difference, over the norm of all tensors of the kind."""


@dataclass(frozen=True)
class Row:
    """One run, against another."""

    form: str
    micro_batch_size: int
    against: str
    seconds: float
    """Of the whole launch."""
    passed: bool | None = None
    """None where the row is only reported."""
    note: str = ""
    samples_equal: bool | None = None
    loss: Largest | None = None
    grad_norm: Largest | None = None
    gradient: Distance | None = None
    """Of step 1; None where the optimizer keeps no first moment."""
    parameters: Distance | None = None
    """At the last step."""
    of_the_way: float | None = None
    """The parameters' distance, over how far the other run moved them."""
    trained: bool | None = None
    """Whether losses moved, gradients were not zero and the parameters left their start."""
    parting: Parting | None = None


def measure(run: Launched, one: Launched, start: Path, judged: bool, note: str = "") -> Row:
    """Compare a run with one process; whether it passed is decided by `first_parting`.

    Args:
        run: Saved after step 1 and its last.
        one: The same.
        start: The checkpoint both started from.
        judged: Whether the tolerance holds for this row.
        note: What a reader should know of it.
    """
    against = f"{one.form.name}, micro-batch {one.form.micro_batch_size}"
    facts = (run.form.name, run.form.micro_batch_size, against, run.seconds)
    if run.exit_code:
        return Row(*facts, passed=False, note=f"ended with exit code {run.exit_code}: {run.reason}")
    ours, theirs = run.curve, one.curve
    moment = first_moment(one.checkpoint(1))
    if not judged and first_moment(run.checkpoint(1)) != moment:
        moment = None  # another trainer may save none
    apart = distance(run.last_checkpoint, one.last_checkpoint, "param")
    way = distance(one.last_checkpoint, start, "param").absolute
    left = distance(run.last_checkpoint, start, "param").absolute
    return Row(
        *facts,
        passed=True if judged else None,
        note=note,
        samples_equal=same_samples(ours, theirs),
        loss=largest(ours, theirs, "loss"),
        grad_norm=largest(ours, theirs, "grad_norm"),
        gradient=distance(run.checkpoint(1), one.checkpoint(1), moment) if moment else None,
        parameters=apart,
        of_the_way=apart.absolute / way if way else None,
        trained=left > 0 and moved(ours),
    )


def first_parting(row: Row, run: Launched, one: Launched, tolerance: float) -> Parting | None:
    """Find the first step past the tolerance, and what is past it there."""
    ours, theirs = run.curve, one.curve
    for a, b in zip(ours, theirs, strict=False):
        step = b["step"]
        if (a["step"], a["sample_digest"]) != (step, b["sample_digest"]):
            return Parting(step, "samples", None)
        values = {"loss": relative(a["loss"], b["loss"])}
        if step == 1 and row.gradient:
            values["gradient"] = row.gradient.relative
        values["grad_norm"] = relative(a["grad_norm"], b["grad_norm"]) / NORM_FACTOR
        past = next((name for name, value in values.items() if value > tolerance), None)
        if past:
            return Parting(step, past, values[past] * (NORM_FACTOR if past == "grad_norm" else 1))
    if len(ours) != len(theirs):
        return Parting(min(len(ours), len(theirs)) + 1, "samples", None)
    return None
