"""The batch plan: which examples make up which step, a pure function of the step number that knows no ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import blake2b
from math import ceil

import numpy as np

from onecurve.config import Recipe
from onecurve.seeds import stream_key


@dataclass(frozen=True)
class Step:
    """One optimizer update's worth of examples."""

    number: int
    """1-based."""
    micro_batches: list[np.ndarray]
    """Example ids, int64 [at most micro_batch_size] each, in plan order."""
    num_items: int
    """Terms of the loss over all micro-batches: what the loss is divided by."""
    samples_before: int
    """Examples seen in the steps before this one."""
    following: "Callable[[], Step | None]" = field(default=lambda: None, repr=False, compare=False)
    """Returns the step that is probably next, for who prepares it ahead."""

    @property
    def sample_ids(self) -> np.ndarray:
        """Every example id of the step in plan order, int64."""
        return np.concatenate(self.micro_batches)

    @property
    def num_samples(self) -> int:
        """Examples seen up to and with this step."""
        return self.samples_before + sum(map(len, self.micro_batches))

    @property
    def sample_digest(self) -> str:
        """Hash of the ids in plan order: equal digests mean equal data."""
        return blake2b(self.sample_ids.astype("<i8").tobytes(), digest_size=8).hexdigest()

    def of_rank(self, rank: int, world_size: int) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Yield this rank's (position, example ids, whether they count).

        Position i belongs to rank i mod world_size. Every rank gets the same number of passes, because engines
        communicate in each: where positions run out, the first micro-batch stands in and counts for nothing.
        """
        for position in range(rank, num_passes(len(self.micro_batches), world_size) * world_size, world_size):
            counts = position < len(self.micro_batches)
            yield position, self.micro_batches[position if counts else 0], counts


def num_passes(num_micro_batches: int, world_size: int) -> int:
    """Passes each rank makes: the gradient accumulation steps, derived."""
    return ceil(num_micro_batches / world_size)


@dataclass(frozen=True)
class BatchPlan:
    """Every step of a run. Seeking a step costs the same at any step number."""

    num_items: np.ndarray
    """Terms of the loss in each example, int64 [num_examples]."""
    seed: int
    global_batch_size: int
    micro_batch_size: int
    max_steps: int = 0
    """Steps of the whole run."""
    shuffle: bool = True

    @property
    def num_examples(self) -> int:
        """Examples of one epoch."""
        return len(self.num_items)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the short last one included."""
        return ceil(self.num_examples / self.global_batch_size)

    @property
    def short_last_batch(self) -> int:
        """Examples in an epoch's last step when they are fewer than `global_batch_size`, else 0."""
        return self.num_examples % self.global_batch_size

    def num_steps(self, epochs: float) -> int:
        """Steps that so many epochs take."""
        return max(1, ceil(epochs * self.steps_per_epoch))

    def most_passes(self, world_size: int) -> int:
        """Passes each rank makes in a full step."""
        examples = min(self.global_batch_size, self.num_examples)
        return num_passes(ceil(examples / self.micro_batch_size), world_size)

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """Yield steps `first` to `last`, both included."""
        return map(self.step, range(first, last + 1))

    def after(self, number: int) -> Step | None:
        """Return the step after step `number`; None after the last."""
        return self.step(number + 1) if number < self.max_steps else None

    def step(self, number: int) -> Step:
        """Return step `number` (1-based)."""
        assert number >= 1, number
        epoch, within = divmod(number - 1, self.steps_per_epoch)
        start = within * self.global_batch_size
        ids = self._order(epoch)[start : start + self.global_batch_size]
        return Step(
            number=number,
            micro_batches=[ids[i : i + self.micro_batch_size] for i in range(0, len(ids), self.micro_batch_size)],
            num_items=int(self.num_items[ids].sum()),
            samples_before=epoch * self.num_examples + start,
            following=partial(self.after, number),
        )

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_examples)
        return _shuffled(self.num_examples, stream_key(self.seed, "order", epoch))


def plan_run(num_items: np.ndarray, recipe: Recipe) -> BatchPlan:
    """Plan a recipe's run over examples with so many terms of the loss each."""
    train = recipe.train
    plan = BatchPlan(num_items, recipe.seed, train.global_batch_size, train.examples_a_pass)
    return replace(plan, max_steps=train.max_steps or plan.num_steps(train.epochs or 1))


@lru_cache(maxsize=2)
def _shuffled(num_examples: int, key: int) -> np.ndarray:
    # Sorting raw Philox output: NumPy freezes bit generators' streams, but not what `permutation` makes of them
    return np.argsort(np.random.Philox(key=key).random_raw(num_examples), kind="stable")
