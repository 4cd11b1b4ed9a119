"""Which checkpoints are kept, and whether they fit on the disk."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """What is kept besides the one just written, which always stays."""

    last: int = 2
    """How many of the newest."""
    every: int = 0
    """Every checkpoint whose step is a multiple of this; 0: none for that reason."""
    best: bool = True
    """The one of the best step so far."""
    also: tuple[int, ...] = ()
    """Steps whose checkpoints are kept forever."""

    def doomed(self, steps: Iterable[int], newest: int, best_step: int | None) -> list[int]:
        """List the steps to delete.

        Args:
            steps: Of the complete checkpoints.
            newest: The one just written.
            best_step: The best step so far, if any.
        """
        ordered = sorted(steps)
        kept = {newest, *ordered[-max(1, self.last) :]}
        if self.best and best_step is not None:
            kept.add(best_step)
        return [step for step in ordered if step not in kept and not self.forever(step)]

    def most(self, steps: Sequence[int]) -> int:
        """Count the checkpoints that can lie on disk between two saves, in a run that saves at `steps`."""
        forever = sum(map(self.forever, steps))
        return min(len(steps), max(1, self.last) + forever + int(self.best))

    def forever(self, step: int) -> bool:
        """Whether the checkpoint of a step is never deleted."""
        return step in self.also or (self.every > 0 and step % self.every == 0)


def forecast(
    bytes_per_checkpoint: int,
    keep: int,
    free: int,
    final_model: int = 0,
    present: int = 0,
    one_more: bool = True,
    records: int = 0,
) -> str:
    """Say what is short when the disk cannot hold what the run will write; empty when it can.

    Args:
        bytes_per_checkpoint: Of all ranks together.
        keep: Checkpoints kept at once (`Retention.most`).
        free: Bytes free now.
        final_model: Bytes of the model written at the end.
        present: Bytes of this run's checkpoints that are on the disk already and will be deleted in time; not of those
            that stay for ever, which `keep` does not count either.
        one_more: Whether more are written than are kept: the next is complete before the oldest goes.
        records: Bytes of completions that are recorded in each step, at most.
    """
    needed = (keep + one_more) * bytes_per_checkpoint + final_model + records
    if needed <= free + present:
        return ""
    told = f"{keep} checkpoint{'s' * (keep != 1)} of {_size(bytes_per_checkpoint)}"
    told += ", one more while it is written" * one_more
    if final_model:
        told += f", and the model of {_size(final_model)}"
    if records:
        told += f", and up to {_size(records)} of rollouts, where each completion has all tokens that it may"
    return f"{told}: {_size(needed)} in all, and {_size(free + present)} can be used."


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
