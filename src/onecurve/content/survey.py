"""What is known of the training rows as a whole before any is encoded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from onecurve.content.labels import rows_by_name


@dataclass(frozen=True)
class Survey:
    """Information from the training rows, collected before any is encoded."""

    labels: list[str] = field(default_factory=list)
    """Label names in the order of their ids; empty where the task has none."""
    order: Literal["natural", "dataset", "model", "recipe"] = "natural"
    """What fixed that order: nothing (numbers by value, else A to Z), a hub dataset's feature, the model's config, or
    the recipe. A later one wins."""
    unseen: list[str] = field(default_factory=list)
    """Labels that no training row has."""
    label_counts: list[int] = field(default_factory=list)
    """Training rows (or words) that have each label, in the same order; empty where nobody counts them."""
    heads: "dict[str, Survey]" = field(default_factory=dict)
    """Of a task with several heads, what each is told."""

    def in_dataset_order(self, declared: Sequence[str]) -> "Survey":
        """Return it with the labels that a dataset declares, those that no row has included.

        `datasets` counts them too (`ClassLabel.num_classes`), and their ids stay what they are elsewhere.
        """
        names = set(declared)
        if self.order != "natural" or not self.labels or not set(self.labels) <= names or len(names) < len(declared):
            return self
        return self._ordered(list(declared), "dataset", [name for name in declared if name not in self.labels])

    def in_model_order(self, known: Sequence[str]) -> "Survey":
        """Return it in the order of the labels that a model was trained on, where they are the same ones.

        With these labels where a task leaves them to the model: where it says so (`order`) and names none.
        """
        if self.order == "model" and not self.labels:
            return replace(self, labels=list(known))
        rows = rows_by_name(self.labels, known)
        if self.order == "recipe" or not rows:
            return self
        labels = [name for _, name in sorted(zip(rows, self.labels, strict=True))]
        return self._ordered(labels, "model", self.unseen)

    def _ordered(self, labels: list[str], order: Any, unseen: list[str]) -> "Survey":
        counts = dict(zip(self.labels, self.label_counts, strict=False))
        label_counts = [counts.get(name, 0) for name in labels] if counts else []
        return replace(self, labels=labels, order=order, unseen=unseen, label_counts=label_counts)
