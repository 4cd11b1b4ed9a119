"""Which rows of its data a split has: a share that is held out of training, and at most `data.max_samples`."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onecurve.config import DataSection
from onecurve.errors import DataError
from onecurve.seeds import stream_key

_HELD_OUT = ("eval", "test")


def share(spec: str | list[str] | None) -> float | None:
    """Return the share that `5%` means, 0.05; None for what names data."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", spec.strip()) if isinstance(spec, str) else None
    return float(match[1]) / 100 if match else None


@dataclass(frozen=True)
class Selection:
    """The rows that a split has of its source: chosen by their numbers and the seed, so on every rank the same."""

    split: str
    shares: tuple[tuple[str, float], ...]
    """Splits that are held out of the training rows, each with its share; empty where this split has rows of its own.
    """
    most: int | None
    """How many rows the split may have."""
    seed: int

    @classmethod
    def of(cls, split: str, settings: DataSection, seed: int) -> "Selection | None":
        """Return what the data section says of a split; None where it has every row of its source."""
        found = {name: share(getattr(settings, name)) for name in _HELD_OUT}
        shares = tuple((name, part) for name, part in found.items() if part is not None)
        if split != "train" and found[split] is None:
            shares = ()
        limits = settings.max_samples
        most = {str(name): rows for name, rows in limits.items()}.get(split) if isinstance(limits, dict) else limits
        return cls(split, shares, most, seed) if shares or most else None

    def keep(self, num_rows: int) -> np.ndarray:
        """Return which rows the split has: bool [num_rows].

        Raises:
            DataError: A share is less than one row, or no row is left to train on.
        """
        rows = np.arange(num_rows)
        if self.shares:
            order, start, parts = self._order("held out", num_rows), 0, {}
            for name, part in self.shares:
                stop = start + round(part * num_rows)
                if stop == start:
                    raise DataError(
                        f"{100 * part:g}% of {num_rows} training rows is no row.",
                        where=f"data.{name}",
                        fix="Set a larger share, or name a file.",
                    )
                parts[name], start = order[start:stop], stop
            parts["train"] = order[start:]
            rows = parts[self.split]
            if not len(rows):
                raise DataError(f"the shares of dev and test leave none of {num_rows} rows.", where="data.train")
        if self.most is not None and self.most < len(rows):
            rows = np.sort(rows)[self._order("max_samples", len(rows))[: self.most]]
        kept = np.zeros(num_rows, bool)
        kept[rows] = True
        return kept

    def _order(self, purpose: str, num_rows: int) -> np.ndarray:
        # As in the batch plan: NumPy freezes bit generators' streams, but not what `permutation` makes of them
        key = stream_key(self.seed, purpose, *([] if purpose == "held out" else [self.split]))
        return np.argsort(np.random.Philox(key=key).random_raw(num_rows), kind="stable")

    @cached_property
    def reason(self) -> str:
        """The settings that leave out rows, for the summary."""
        own = dict(self.shares).get(self.split)
        held_out = f"{100 * own:g}% of data.train" if own else ""
        taken = f"{' and '.join(f'data.{name}' for name, _ in self.shares)} held out" if self.shares and not own else ""
        return ", ".join(filter(None, [held_out, taken, "data.max_samples" if self.most else ""]))
