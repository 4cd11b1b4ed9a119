"""An average of a run's weights over its steps: each rank keeps its share, and scoring borrows the model for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from onecurve.config import RegularizationSection
from onecurve.errors import BetweenUpdates
from onecurve.strategies.base import Strategy, Window
from onecurve.strategies.snapshot import Snapshot, mean_of_weights


class Average:
    """Empty until the first step that counts; unused without `regularization.average`.

    ema: Polyak & Juditsky, Acceleration of stochastic approximation by averaging, 1992, with exponential weights. swa:
    Izmailov et al., Averaging weights leads to wider optima and better generalization, UAI 2018, algorithm 1. Both
    begin with a copy of the weights and move as `torch.optim.swa_utils` has it. last: the mean of the latest weights
    that counted, as of checkpoints (Vaswani et al., Attention is all you need, 2017, section 6.1). best: not kept here,
    because it begins with scores (see `evaluation.best`).

    Args:
        strategy: Whose trained parameters, and buffers that training moves, are averaged.
        section: The recipe's `regularization`.
    """

    def __init__(self, strategy: Strategy, section: RegularizationSection) -> None:
        self.strategy, self.section = strategy, section
        self.kept: list[dict[str, Tensor]] = []
        """Of ema and swa the mean, on the device in float32; of last, copies of the latest weights on the host."""
        self.count = 0
        """Steps that have counted."""
        self.kind = {"last": f"last {section.average_count}", "best": None}.get(section.average or "", section.average)
        """What is averaged here; None: nothing."""
        if self.kind:
            strategy.after_update = self.move

    @torch.no_grad()
    def move(self, step: int) -> None:
        """Take in the weights after update `step`, where it counts."""
        start, every = self.section.average_start, self.section.average_every
        if step < start or (step - start) % every:
            return
        if self.section.average == "last":
            self.kept = [*self.kept, self._copies()][-self.section.average_count :]
        elif not self.kept:
            self.kept = [self._copies()]
        else:
            self._move_mean(self.kept[0])
        self.count += 1

    def _copies(self) -> dict[str, Tensor]:
        host = self.section.average == "last"
        return {w.name: _wide(w.view.detach()).to("cpu" if host else w.view.device, copy=True) for w in self._held()}

    def _move_mean(self, mean: dict[str, Tensor]) -> None:
        share = 1 - self.section.average_decay if self.section.average == "ema" else 1 / (self.count + 1)
        held = [(mean[window.name], window.view.detach()) for window in self._held()]
        floating = [(kept, _wide(now)) for kept, now in held if now.is_floating_point()]
        torch._foreach_lerp_([kept for kept, _ in floating], [now for _, now in floating], share)
        for kept, now in held:
            if not now.is_floating_point():  # a count
                kept.copy_(now)

    @torch.no_grad()
    def put(self) -> None:
        """Put the average in the model's place for good; nothing where no step has counted. Every rank calls this."""
        if self.kept:
            shares = {name: mean_of_weights([one[name] for one in self.kept]) for name in self.kept[0]}
            Snapshot(self.strategy, shares).restore()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the model's place for a while; training then goes on from its own weights, bit for bit.

        Where this fails the run ends, so nothing is put back then: other ranks may be gone. They are not where all of
        them met the same mistake, and the weights are still to be saved.
        """
        trained = Snapshot(self.strategy)
        if self.kept:
            trained.take()
        self.put()
        try:
            yield
        except BetweenUpdates:
            if self.kept:
                trained.restore()
            raise
        if self.kept:
            trained.restore()

    def windows(self) -> Iterator[Window]:
        """Yield what is kept as windows, so that it can be saved and loaded like the rest."""
        for number, kept in enumerate(self.kept):
            for w in self._held():
                yield Window(w.name, f"average-{number}", kept[w.name], w.offset, w.numel, w.shape)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it besides the windows."""
        return {"kind": self.kind, "count": self.count, "kept": len(self.kept)}

    def load(self, state: dict[str, Any] | None, step: int) -> str:
        """Make room for what a checkpoint of `step` with this `state` holds, which its reader then fills.

        Returns:
            What of it is dropped, or missing, and why; empty if nothing is.
        """
        before = state or {"kind": None, "count": 0, "kept": 0}
        self.kept, self.count = [], 0
        if before["kind"] == self.kind:
            self.count, self.kept = before["count"], [self._copies() for _ in range(before["kept"])]
            return ""
        begins = f": the average begins anew after step {step}" if self.kind else ""
        return f"regularization.average was {before['kind']} and is {self.kind or self.section.average}{begins}"

    def _held(self) -> Iterator[Window]:
        return (window for window in self.strategy.windows(once=True) if window.key in ("param", "buffer"))


def _wide(values: Tensor) -> Tensor:
    """Return values in float32, which an average of bfloat16 weights needs: its moves are smaller than their digits."""
    return values.float() if values.is_floating_point() else values


def describe_average(section: RegularizationSection, num_bytes: int) -> str:
    """Say what is averaged and what it takes; empty where nothing is.

    Args:
        section: The recipe's `regularization`.
        num_bytes: Of what is trained, in float32.
    """
    if section.average is None:
        return ""
    how = {
        "ema": f"exponential moving average, decay {section.average_decay:g}",
        "swa": "running mean (swa)",
        "last": f"mean of the last {section.average_count}",
        "best": f"mean of the {section.average_count} best evaluations, once training has ended",
    }[section.average]
    if section.average == "best":
        held = section.average_count * num_bytes / 1e6
        return f"average   {how}: up to {held:,.1f} MB of host memory over all ranks, and in each checkpoint"
    when = f"every {section.average_every} steps" if section.average_every > 1 else "every step"
    where = "of host memory" if section.average == "last" else "of the devices' memory"
    return (
        f"average   {how}, {when} from step {section.average_start}: {section.copies * num_bytes / 1e6:,.1f} MB more "
        f"{where} over all ranks, another copy while scoring; it is what is scored, chosen and exported"
    )
