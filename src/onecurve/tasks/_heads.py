"""One of several heads: a task of its own, which reads its part of a row that all heads share."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onecurve.errors import BadRow, ConfigError, DataError
from onecurve.tasks.base import TALLY, Batch, Example, Processing, Row, Survey, Task

if TYPE_CHECKING:
    from torch import Tensor

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What the backbone is given, and what all heads must agree on."""
ITEMS = "items"
"""Key of a head's part of a batch: items of each example, int64 [examples]."""
_TASK_KEY = re.compile(r"\btask\.(?=[a-z_])")


@dataclass(frozen=True)
class Head:
    """A head: its task, and which columns of the shared row its task's columns are."""

    name: str
    task: Task
    columns: Mapping[str, str]
    """The task's column -> the shared row's."""
    weight: float

    @property
    def key(self) -> str:
        """Its place in the recipe."""
        return f"task.heads.{self.name}"

    @property
    def inputs(self) -> dict[str, str]:
        """The shared row's input columns, optional ones with `?`, and what they hold."""
        return {self._shared(name): what for name, what in self.task.columns.items() if not self._is_target(name)}

    @property
    def targets(self) -> dict[str, str]:
        """The shared row's columns with this head's labels, all optional, and what they hold."""
        return {
            f"{self._shared(name).removesuffix('?')}?": f"{self.name}: {what}"
            for name, what in self.task.columns.items()
            if self._is_target(name)
        }

    def _is_target(self, name: str) -> bool:
        return name.removesuffix("?") in self.task.targets

    def _shared(self, name: str) -> str:
        column = name.removesuffix("?")
        return self.columns[column] + name[len(column) :]

    @contextmanager
    def told(self) -> Iterator[None]:
        """Have the task's errors name the head, and its settings by their place in the recipe."""
        try:
            yield
        except BadRow as error:
            raise BadRow(f"{self.name}: {self.placed(str(error))}") from None
        except (ConfigError, DataError) as error:
            where, fix = self.placed(error.where), self.placed(error.fix)
            raise type(error)(f"head {self.name}: {self.placed(error.what)}", where=where, fix=fix) from None

    def placed(self, text: str) -> str:
        """Return a task's message with its settings as the recipe has them."""
        return _TASK_KEY.sub(f"{self.key}.", text)

    # Rows

    def row(self, shared: Row, labels: bool = True) -> Row:
        """Return a row as the task reads it; words that it reads as a text are joined by spaces."""
        found = {}
        for name, column in self.columns.items():
            if column not in shared or (not labels and name in self.task.targets):
                continue
            value = shared[column]
            if name != column and name not in self.task.targets and isinstance(value, list):
                value = " ".join(map(str, value))
            found[name] = value
        return found

    def is_labelled(self, shared: Row) -> bool:
        """Whether a row has labels for this head; an empty cell is none, unless the task can read it."""
        values = [shared.get(column) for name, column in self.columns.items() if name in self.task.targets]
        if any(value is not None and not (isinstance(value, str) and not value.strip()) for value in values):
            return True
        if all(value is None for value in values):
            return False
        try:
            self.task.check(self.row(shared))
        except BadRow:
            return False
        return True

    def labelled_rows(self, rows: Iterable[Row]) -> list[Row]:
        """Return the labels of those rows that have some."""
        return [
            {name: value for name, value in self.row(row).items() if name in self.task.targets}
            for row in rows
            if self.is_labelled(row)
        ]

    # Examples

    def encode(self, shared: Row, survey: Survey, reading: Processing, truncate: bool) -> Example:
        """Return a row's example; without labels, `num_items` is 0 and what is learnt from is not there.

        Raises:
            ConfigError: The task makes several examples of a row.
        """
        found = []
        with self.told():
            if self.is_labelled(shared):
                found = self.task.encode(self.row(shared), survey, reading, truncate)
            if not found:
                found = self.task.encode(self.row(shared, labels=False), survey, reading, truncate)
        if len(found) != 1:
            raise ConfigError(
                f"a head's task must make one example of a row, and this one made {len(found)}.",
                where=f"{self.key}.name",
            )
        (example,) = found
        if not isinstance(example["num_items"], int):
            raise ConfigError("a head's task must have one loss term.", where=f"{self.key}.name")
        return {name: value for name, value in example.items() if name != TALLY}

    def own(self, example: Example) -> Example:
        """Return this head's example of a shared one."""
        prefix = f"{self.name}/"
        own = {name.removeprefix(prefix): value for name, value in example.items() if name.startswith(prefix)}
        return {name: example[name] for name in INPUTS if name in example} | own

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        """Return this head's batch of shared examples, with `items`; no labels where no example has some.

        Where only some have, the others are given those of the first that has, so that a batch has one row an example:
        their number of items is 0, and `loss_sum` leaves them out.
        """
        import torch

        own = [self.own(example) for example in examples]
        counts = [example["num_items"] for example in own]
        stand_in = next((example for example in own if example["num_items"]), {})
        batch = self.task.collate([{**stand_in, **example} for example in own], reading)
        return batch | {ITEMS: torch.tensor(counts)}

    # Outputs

    def batch(self, shared: Batch) -> Batch:
        """Return this head's part of a shared batch, as its task collated it."""
        prefix = f"{self.name}/"
        own = {name.removeprefix(prefix): value for name, value in shared.items() if name.startswith(prefix)}
        del own[ITEMS]
        return {name: shared[name] for name in INPUTS if name in shared} | own

    def labelled(self, outputs: "Tensor", shared: Batch) -> "tuple[Tensor, Batch, Tensor]":
        """Return the outputs and the batch of the examples that have labels, and which these are.

        The places are on the host, which knows them without waiting for a device: int64 [examples with labels].
        """
        from onecurve.machine.accelerator import select

        places, own = self._places(shared), self.batch(shared)
        if len(places) == len(outputs):
            return outputs, own, places
        return select(outputs, places), {name: select(value, places) for name, value in own.items()}, places

    def _places(self, shared: Batch) -> "Tensor":
        import numpy as np
        import torch

        from onecurve.machine.accelerator import on_host

        return torch.from_numpy(np.flatnonzero(on_host(shared[f"{self.name}/{ITEMS}"]).numpy()))

    def forward(self, logits: "Tensor", shared: Batch) -> "Tensor":
        """Return what the task makes of its head's logits.

        Raises:
            ConfigError: It gives the model something else than what the heads share.
        """
        return self.task.forward(_Answering(self, logits), self.batch(shared))  # type: ignore[arg-type]

    def loss_sum(self, outputs: "Tensor", shared: Batch) -> "Tensor":
        """Return the loss, summed over the labelled examples: float32 []; zero, with a gradient of zero, without."""
        own, batch, places = self.labelled(outputs, shared)
        if not len(places):
            return (outputs.float() * 0).sum()
        return self.task.loss_sum(own, batch).reshape(())

    def num_items(self, shared: Batch) -> int:
        """Count the terms of the loss."""
        from onecurve.machine.accelerator import select

        places = self._places(shared)
        if not len(places):
            return 0
        return int(self.task.num_items({name: select(v, places) for name, v in self.batch(shared).items()}))


class _Answering:
    """Stands where a task expects its model, whose logits are known by now."""

    def __init__(self, head: Head, logits: "Tensor") -> None:
        self.head, self.logits = head, logits

    def __call__(self, **inputs: Any) -> "_Answering":
        if others := sorted(inputs.keys() - set(INPUTS)):
            raise ConfigError(
                f"gives its model {', '.join(others)}; heads share {', '.join(INPUTS)} and nothing else.",
                where=f"{self.head.key}.name",
            )
        return self
