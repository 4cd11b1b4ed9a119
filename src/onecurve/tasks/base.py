"""The contract between the loop and a task: what a row must hold, and six verbs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from onecurve.content.labels import rows_by_name
from onecurve.errors import BadRow as BadRow

if TYPE_CHECKING:  # the heavy imports wait until a recipe is known to be good
    from torch import Tensor, nn

IGNORE_INDEX = -100
"""Label that takes no part in the loss; PyTorch's and transformers' default."""

Row = dict[str, Any]
"""One row of the data by the task's own column names."""
Example = dict[str, Any]
"""One encoded example: `input_ids` (list of int), `labels`, whatever else `collate` reads, and `num_items` (int)."""
Batch = dict[str, "Tensor"]
"""One micro-batch; every tensor's first dimension is the example."""


class Settings(BaseModel):
    """A task's own settings: the keys beside `task.name`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Survey:
    """What the training rows tell before any is encoded."""

    labels: list[str] = field(default_factory=list)
    """Label names in the order of their ids; empty where the task has none."""
    order: Literal["natural", "dataset", "model", "recipe"] = "natural"
    """What fixed that order: nothing (numbers by value, else A to Z), a hub dataset's feature, the model's config, or
    the recipe. A later one wins."""
    unseen: list[str] = field(default_factory=list)
    """Labels that no training row has."""

    def in_dataset_order(self, declared: Sequence[str]) -> "Survey":
        """Return it with the labels that a dataset declares, those that no row has included.

        `datasets` counts them too (`ClassLabel.num_classes`), and their ids stay what they are elsewhere.
        """
        names = set(declared)
        if self.order != "natural" or not self.labels or not set(self.labels) <= names or len(names) < len(declared):
            return self
        return Survey(list(declared), "dataset", [name for name in declared if name not in self.labels])

    def in_model_order(self, known: Sequence[str]) -> "Survey":
        """Return it in the order of the labels that a model was trained on, where they are the same ones."""
        rows = rows_by_name(self.labels, known)
        if self.order == "recipe" or not rows:
            return self
        labels = [name for _, name in sorted(zip(rows, self.labels, strict=True))]
        return Survey(labels, "model", self.unseen)


class Task(Protocol):
    """What a task is. One file in this folder, with a class of this shape named `Task`."""

    Settings: ClassVar[type[Settings]]
    settings: Any
    """An instance of them."""
    columns: ClassVar[Mapping[str, str]]
    """Column -> what it must hold. A name ending in `?` is optional: the file need not have it."""
    encoder_version: ClassVar[int]
    """Raised whenever `encode` changes what it returns, so that old caches are not read."""

    def __init__(self, settings: Any) -> None: ...

    def check(self, row: Row) -> None:
        """Raise `BadRow` when a value has the wrong type, is empty or cannot be meant. Needs no tokenizer."""

    def survey(self, rows: Iterable[Row]) -> Survey:
        """Read what the training split must tell (label names) from its rows, which passed `check`."""

    def check_label(self, row: Row, survey: Survey) -> None:
        """Raise `BadRow` when a dev or test row has a label that training never saw."""

    def encode(self, row: Row, survey: Survey, tokenizer: Any, max_length: int, truncate: bool) -> list[Example]:
        """Turn one row into examples: one, several (a long document), or none with nothing to learn.

        With `truncate` none is longer than `max_length`; without, it may be, and the caller decides.
        """

    def auto_model(self) -> type:
        """Return the transformers `AutoModelFor...` class."""

    def model_config(self, survey: Survey) -> dict[str, Any]:
        """Return what the model's config must be told (label names, problem type)."""

    peft_task_type: ClassVar[str | None]
    """PEFT's name for this kind of model, such as SEQ_CLS or CAUSAL_LM."""

    def collate(self, examples: Sequence[Example], pad_id: int) -> Batch:
        """Pad examples to one batch: `input_ids`, `attention_mask` (int64 [batch, sequence]), `labels`.

        May run in a thread beside the model, and so draws nothing at random.
        """

    def num_items(self, batch: Batch) -> int:
        """Count the terms of the loss: exactly what `loss_sum` adds up, and the sum of the examples' `num_items`."""

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        """Return the logits: float [batch, classes] or, where tokens are predicted, [targets, vocabulary].

        Or what `loss_sum` makes of them, a scalar, where `train.logits` is chunked.
        """

    def loss_sum(self, logits: "Tensor", batch: Batch) -> "Tensor":
        """Loss *summed* over the batch's items, float32 [], in nats (regression: squared units)."""

    def predict(self, logits: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        """Return (prediction, reference) per example as plain values; empty where only the loss is scored."""

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        """Score a whole split: names to numbers, and what has parts (per class, confusion) to nested values."""

    metric_names: Sequence[str]
    """The numbers among what `metrics` returns under these settings: what `eval.best_metric` may name."""

    lower_is_better: ClassVar[frozenset[str]]
    """The metrics that get better as they fall; `loss` always does."""

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        """Show one example as the model sees it: what is read and what is learnt from."""


@runtime_checkable
class Recognises(Protocol):
    """A task that knows rows of other forms than its own by their columns."""

    shapes: ClassVar[Mapping[str, Mapping[str, str]]]
    """Name -> task column, optional ones with `?`, -> file column. The first that a row fits is taken, where the recipe
    has no `data.columns` and the row has no column of the task's own form but those that the two share."""


@runtime_checkable
class Writes(Protocol):
    """A task whose model writes text."""

    def end_token(self, tokenizer: Any) -> int | None:
        """Return the token that the model learns to end with; None where that cannot be told."""


def pad(rows: Sequence[Sequence[int]], value: int) -> "Tensor":
    """Right-pad rows of ids to int64 [len(rows), longest]."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([list(row) + [value] * (width - len(row)) for row in rows])
