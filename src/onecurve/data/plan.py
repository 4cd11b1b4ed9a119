"""The batch plan: the examples of each step, as a pure function of the step number, independent of ranks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import blake2b
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from onecurve.config import DataSection, Recipe, weights_of
from onecurve.data.micro_batches import Cut
from onecurve.data.mixture import Mixture, weights_at, whole_weights
from onecurve.data.order import shuffled
from onecurve.data.position import Position
from onecurve.data.shards import Numbers
from onecurve.data.windows import Windows, windows_of
from onecurve.errors import ConfigError
from onecurve.seeds import stream_key

if TYPE_CHECKING:
    from onecurve.data.splits import Split


@dataclass(frozen=True)
class Step:
    """One optimizer update's worth of examples."""

    number: int
    """1-based."""
    sample_ids: np.ndarray
    """Every example id of the step in plan order, however it is cut: int64 [examples]."""
    micro_batches: list[np.ndarray]
    """The same ids as they are computed together, int64 [examples] each."""
    num_items: int | list[int]
    """Terms of the loss over all micro-batches: what the loss is divided by. Of a task with several terms, a list."""
    samples_before: int
    """Examples seen in the steps before this one."""
    epoch: int = 0
    """The pass over the data that its examples are of, 0-based."""
    passes: list[np.ndarray] | None = None
    """In a mixture, the pass over its own source that each example of `micro_batches` is of: int64 [examples] each."""
    sample_passes: np.ndarray | None = None
    """In a mixture, the same for each of `sample_ids`: int64 [examples]."""
    seen: dict[str, int] = field(default_factory=dict)
    """Source of a mixture -> its draws among as many as were seen up to and with this step, all by today's weights."""
    seed: int = 0
    """Of what is drawn for its examples."""
    following: "Callable[[], Step | None]" = field(default=lambda: None, repr=False, compare=False)
    """Returns the step that is probably next, for who prepares it ahead."""

    @property
    def num_samples(self) -> int:
        """Examples seen up to and with this step."""
        return self.samples_before + len(self.sample_ids)

    @property
    def sample_digest(self) -> str:
        """Hash of the ids in plan order: equal digests mean equal data."""
        return blake2b(self.sample_ids.astype("<i8").tobytes(), digest_size=8).hexdigest()

    def of_rank(self, rank: int, world_size: int) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Yield this rank's (position, example ids, whether they count).

        Position i belongs to rank i mod world_size. Every rank gets the same number of passes, because engines
        communicate in each: where positions run out, the last micro-batch, which is the cheapest where they are ordered
        by cost, stands in and counts for nothing.
        """
        for position in range(rank, num_passes(len(self.micro_batches), world_size) * world_size, world_size):
            yield position, *self.at(position)

    def partners(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return another example of the step for each at a position, by a permutation keyed by the step.

        Their ids, and the pass over its source that each is of: int64 [examples].
        """
        every = range(len(self.micro_batches))
        draws = sorted(draw for place in every for draw in self._draws(place))  # whatever the cut
        order = np.argsort(np.random.Philox(key=stream_key(self.seed, "partners", self.number)).random_raw(len(draws)))
        others = {draw: draws[other] for draw, other in zip(draws, order.tolist(), strict=True)}
        passes, ids = np.array([others[draw] for draw in self._draws(position)], np.int64).T
        return ids, passes

    def _draws(self, position: int) -> list[tuple[int, int]]:
        return list(zip(self.passes_at(position).tolist(), self.at(position)[0].tolist(), strict=True))

    def at(self, position: int) -> tuple[np.ndarray, bool]:
        """Return the example ids computed at a position, and whether they count."""
        counts = position < len(self.micro_batches)
        return self.micro_batches[position if counts else -1], counts

    def passes_at(self, position: int) -> np.ndarray:
        """Return which pass over its source each example at a position is of: int64 [examples]."""
        if self.passes is None:
            return np.full(len(self.at(position)[0]), self.epoch, np.int64)
        return self.passes[position if position < len(self.passes) else -1]


def num_passes(num_micro_batches: int, world_size: int) -> int:
    """Passes each rank makes: the gradient accumulation steps, derived."""
    return ceil(num_micro_batches / world_size)


@dataclass(frozen=True)
class BatchPlan:
    """Every step of a run. Seeking a step costs the same at any step number."""

    num_items: np.ndarray | Numbers
    """Terms of the loss in each example, int [num_examples], or [num_examples, terms]."""
    seed: int
    global_batch_size: int
    micro_batch_size: int
    """Examples of a micro-batch, unless `cut` counts tokens."""
    max_steps: int = 0
    """Steps of the whole run."""
    shuffle: bool = True
    cut: Cut | None = None
    """How a step is cut; None: in plan order."""
    mixture: Mixture | None = None
    """Which example each draw gives; None: every example once an epoch, in an order of its own."""
    each: int = 1
    """Examples of a micro-batch that come of each: where it is a prompt, its completions."""
    windows: Windows | None = None
    """The order of each epoch, where it is not a shuffle of all examples."""
    sweeps: int = 1
    """Passes over each micro-batch, of an objective that takes several."""
    start: Position = field(default_factory=Position)
    """Where the plan begins. Steps before it are not the plan's: they may have had another size or other data."""

    @property
    def num_examples(self) -> int:
        """Examples of one epoch; of a mixture, draws."""
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
        """Steps that a run of so many epochs takes, those before `start` included."""
        last_epoch, within = divmod(ceil(epochs * self.steps_per_epoch), self.steps_per_epoch)
        if last_epoch > self.start.epoch:
            left = self._steps_left + (last_epoch - self.start.epoch - 1) * self.steps_per_epoch + within
        elif last_epoch == self.start.epoch:
            left = ceil(max(0, within * self.global_batch_size - self.start.offset) / self.global_batch_size)
        else:
            left = 0
        return max(1, self.start.step + left)

    @property
    def _steps_left(self) -> int:
        """Steps of the pass that `start` lies in."""
        return ceil((self.num_examples - self.start.offset) / self.global_batch_size)

    def started_at(self, position: Position, epochs: float | None) -> "BatchPlan":
        """Return the plan of the rest of a run of so many epochs; None: of `max_steps`."""
        rest = replace(self, start=position)
        return replace(rest, max_steps=rest.num_steps(epochs)) if epochs else rest

    def position(self, number: int) -> Position:
        """Return where the run is after step `number`."""
        if number == self.start.step:
            return self.start
        epoch, first, before = self._place(number)
        end = min(first + self.global_batch_size, self.num_examples)
        done = end == self.num_examples
        return Position(
            number, before + end - first, epoch + done, 0 if done else end, None if done else self._seed(epoch)
        )

    def _place(self, number: int) -> tuple[int, int, int]:
        """Return the epoch of step `number`, its first example in that pass, and the examples seen before it."""
        assert number > self.start.step, (number, self.start)
        index, epoch = number - 1 - self.start.step, self.start.epoch
        first = self.start.offset + index * self.global_batch_size
        if index >= self._steps_left:
            passes, within = divmod(index - self._steps_left, self.steps_per_epoch)
            epoch, first = epoch + 1 + passes, within * self.global_batch_size
        before = self.start.samples - self.start.offset + (epoch - self.start.epoch) * self.num_examples + first
        return epoch, first, before

    def _seed(self, epoch: int) -> int:
        earlier = self.start.seed if epoch == self.start.epoch else None
        return self.seed if earlier is None else earlier

    def most_passes(self, world_size: int) -> int:
        """Passes each rank makes in a full step, all sweeps; where tokens are counted, at most."""
        examples, size = min(self.global_batch_size, self.num_examples) * self.each, self.micro_batch_size
        if self.cut:  # how long completions become is not known
            size = 1 if self.each > 1 and self.cut.tokens else self.cut.fewest(size)
        return num_passes(ceil(examples / size), world_size) * self.sweeps

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """Yield steps `first` to `last`, both included."""
        return map(self.step, range(first, last + 1))

    def after(self, number: int) -> Step | None:
        """Return the step after step `number`; None after the last."""
        return self.step(number + 1) if number < self.max_steps else None

    def step(self, number: int) -> Step:
        """Return step `number` (1-based)."""
        epoch, first, before = self._place(number)
        stop = min(first + self.global_batch_size, self.num_examples)
        ids, passes = self._drawn(epoch, first, stop)
        size = self.micro_batch_size
        places = np.arange(len(ids))
        parts = self.cut.places(ids, size) if self.cut else [places[i : i + size] for i in range(0, len(ids), size)]
        return Step(
            number=number,
            sample_ids=ids,
            micro_batches=[ids[part] for part in parts],
            num_items=self.num_items[ids].sum(0).tolist(),
            samples_before=before,
            epoch=epoch,
            passes=None if passes is None else [passes[part] for part in parts],
            sample_passes=passes,
            seen=self.mixture.counts(before + len(ids), self._seed(epoch)) if self.mixture else {},
            seed=self._seed(epoch),
            following=partial(self.after, number),
        )

    def _drawn(self, epoch: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the ids of an epoch's examples from one to before another, and of a mixture the passes they are of."""
        if self.mixture:
            before = epoch * self.num_examples
            return self.mixture.draws(before + start, before + stop, self._seed(epoch))
        if self.windows:
            return self.windows.ids(start, stop, self._seed(epoch), epoch), None
        if not self.shuffle:
            return np.arange(start, stop), None
        order = _shuffled(self.num_examples, stream_key(self._seed(epoch), "order", epoch))
        return order[start:stop].astype(np.int64), None


def plan_run(splits: "Sequence[Split]", recipe: Recipe) -> BatchPlan:
    """Plan a recipe's run over the first of its splits.

    Raises:
        ConfigError: An example alone is more than `train.micro_batch_tokens`.
    """
    train, split = recipe.train, splits[0]
    cut = Cut(split.lengths, train.group_by_length, train.micro_batch_tokens, recipe.pads)
    _check_longest(cut, split)
    for other in splits[1:]:
        _check_longest(_scoring_cut(other, recipe), other)
    plan = BatchPlan(split.num_items, recipe.seed, train.global_batch_size // split.each, train.examples_a_pass)
    plan = replace(plan, each=split.each, sweeps=recipe.regularization.sweeps)
    plan = replace(plan, max_steps=train.max_steps or plan.num_steps(train.epochs or 1))
    if mixture := _mixture(split.sets, recipe.data):
        plan = replace(plan, mixture=mixture)
    elif window := recipe.data.shuffle_window:
        plan = replace(plan, windows=windows_of(split.examples, window))
    return replace(plan, cut=cut) if cut.by_length or cut.tokens else plan


def _mixture(sources: "Sequence[Split]", data: DataSection) -> Mixture | None:
    """Return the mixture of named sources; None where they are only joined."""
    sizes, asked = {one.title: len(one) for one in sources}, weights_of(data.train)
    if data.temperature is None and not asked:
        return None
    weights = whole_weights(asked) if asked else weights_at(data.temperature or 0, sizes)
    windows = {one.title: windows_of(one.examples, w, one.title) for one in sources if (w := data.shuffle_window)}
    return Mixture(sizes, weights, {name: found for name, found in windows.items() if found})


def plan_scoring(split: "Split", recipe: Recipe) -> Step:
    """Return a whole split as one step, cut by length: scores are sums and do not depend on how it is cut."""
    size, cut = recipe.eval_micro_batch_size, _scoring_cut(split, recipe)
    return BatchPlan(split.num_items, 0, len(split.lengths), size, shuffle=False, cut=cut).step(1)


def _scoring_cut(split: "Split", recipe: Recipe) -> Cut:
    tokens = None if recipe.eval.micro_batch_size else recipe.train.micro_batch_tokens
    return Cut(split.lengths, by_length=True, tokens=tokens, padded=recipe.pads)


def _check_longest(cut: Cut, split: "Split") -> None:
    tokens = int(cut.lengths[cut.longest]) + split.growth
    if cut.tokens and tokens > cut.tokens:
        raise ConfigError(
            f"is {cut.tokens}, and the longest example, number {cut.longest} (from 0) of data.{split.name}, alone has "
            f"{tokens} tokens" + (f", {split.growth} of them for a completion." if split.growth else "."),
            where="train.micro_batch_tokens",
            fix=f"Set it to {tokens} or more, or limit the examples with data.max_length and data.on_long.",
        )


_shuffled = lru_cache(maxsize=2)(shuffled)
