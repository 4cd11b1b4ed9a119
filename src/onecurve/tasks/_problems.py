"""What a label of a text is: one name, several names, or a number; each with its loss, predictions and scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onecurve.content.label_sets import LabelSets
from onecurve.content.labels import read_name, read_number
from onecurve.tasks.base import Answer

if TYPE_CHECKING:
    from torch import Tensor

# The three kinds of label have one shape: the names in one and in a split, target, loss, predictions, scores, display
_Classes = Literal["label", "labels"] | None


def _blend(labels: "Tensor", partners: "Tensor", share: "Tensor") -> "Tensor":
    """Return targets mixed example by example: float32 [examples, ...], with `share` of the first."""
    share = share.view(-1, *[1] * (labels.dim() - 1))
    return share * labels + (1 - share) * partners


class SingleLabel:
    classes: ClassVar[_Classes] = "label"
    least_labels: ClassVar[int] = 2  # with one there is nothing to tell apart

    def __init__(self, separator: str, known: tuple[str, ...], renamed: Mapping[str, str]) -> None:
        self._renamed = renamed

    def names(self, value: Any) -> list[str]:
        name = read_name(value)
        return [self._renamed.get(name, name)]

    def seen(self, values: Iterable[Any]) -> set[str]:
        return {name for value in values for name in self.names(value)}

    def target(self, value: Any, names: list[str]) -> int:
        return names.index(self.names(value)[0])

    def loss_sum(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(logits, labels, reduction="sum")

    def mixed(self, labels: "Tensor", partners: "Tensor", share: "Tensor", num_classes: int) -> "Tensor":
        from torch.nn import functional

        return _blend(functional.one_hot(labels, num_classes), functional.one_hot(partners, num_classes), share)

    def predict(self, logits: "Tensor") -> list[int]:
        return logits.argmax(-1).tolist()

    def metrics(self, pairs: Sequence[tuple[int, int]], names: list[str]) -> dict[str, Any]:
        from onecurve.metrics.classification import score_classification

        return score_classification(pairs, names)

    def answer(self, logits: "Tensor", names: list[str]) -> Answer:
        probabilities = logits.softmax(-1).tolist()
        best = int(logits.argmax())
        named = dict(zip(names, probabilities, strict=True))
        return {"label": names[best], "probability": probabilities[best], "probabilities": named}

    def reference(self, target: int, names: list[str]) -> str:
        return names[target]

    def show(self, target: int, names: list[str]) -> str:
        return names[target]


class MultiLabel:
    classes: ClassVar[_Classes] = "labels"
    least_labels: ClassVar[int] = 1

    def __init__(self, separator: str, known: tuple[str, ...], renamed: Mapping[str, str]) -> None:
        sets = LabelSets(separator, known, renamed)
        self.names, self.seen = sets.names, sets.seen

    def target(self, value: Any, names: list[str]) -> list[int]:
        label = self.names(value)
        return [int(name in label) for name in names]

    def loss_sum(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")

    def mixed(self, labels: "Tensor", partners: "Tensor", share: "Tensor", num_classes: int) -> "Tensor":
        return _blend(labels, partners, share)

    def predict(self, logits: "Tensor") -> list[list[int]]:
        return (logits > 0).int().tolist()  # a probability above one half

    def metrics(self, pairs: Sequence[tuple[list[int], list[int]]], names: list[str]) -> dict[str, Any]:
        from onecurve.metrics.multilabel import score_multilabel

        return score_multilabel(pairs, names)

    def answer(self, logits: "Tensor", names: list[str]) -> Answer:
        named = dict(zip(names, logits.sigmoid().tolist(), strict=True))
        return {"label": [name for name, logit in zip(names, logits, strict=True) if logit > 0], "probabilities": named}

    def reference(self, target: list[int], names: list[str]) -> list[str]:
        return [name for name, is_in in zip(names, target, strict=True) if is_in]

    def show(self, target: list[int], names: list[str]) -> str:
        return ", ".join(self.reference(target, names))


class Regression:
    classes: ClassVar[_Classes] = None
    least_labels: ClassVar[int] = 0  # numbers have no names

    def __init__(self, separator: str, known: tuple[str, ...], renamed: Mapping[str, str]) -> None: ...

    def names(self, value: Any) -> list[str]:
        read_number(value)
        return []

    def seen(self, values: Iterable[Any]) -> set[str]:
        return set()

    def target(self, value: Any, names: list[str]) -> float:
        return read_number(value)

    def loss_sum(self, logits: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.mse_loss(logits[:, 0], labels, reduction="sum")

    def mixed(self, labels: "Tensor", partners: "Tensor", share: "Tensor", num_classes: int) -> "Tensor":
        return _blend(labels, partners, share)

    def predict(self, logits: "Tensor") -> list[float]:
        return logits[:, 0].tolist()

    def metrics(self, pairs: Sequence[tuple[float, float]], names: list[str]) -> dict[str, Any]:
        from onecurve.metrics.regression import score_regression

        return score_regression(pairs)

    def answer(self, logits: "Tensor", names: list[str]) -> Answer:
        return {"value": logits.item()}

    def reference(self, target: float, names: list[str]) -> float:
        return target

    def show(self, target: float, names: list[str]) -> str:
        return str(target)


Problem = SingleLabel | MultiLabel | Regression

PROBLEMS: dict[str, type[Problem]] = {
    "single_label_classification": SingleLabel,
    "multi_label_classification": MultiLabel,
    "regression": Regression,
}
