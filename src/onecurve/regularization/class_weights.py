"""Class weights: the items of rare labels count more, those of frequent ones less; on the average 1.

balanced: w_c proportional to 1 / n_c. Source: King and Zeng, Logistic regression in rare events data, 2001, as in
scikit-learn's `class_weight`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from onecurve.config import nearest
from onecurve.content.labels import label_name
from onecurve.errors import ConfigError

_KEY = "regularization.class_weights"


def class_weights(
    asked: str | Mapping[str | int | bool, float], labels: Sequence[str], counts: np.ndarray
) -> list[float]:
    """Return the weight of each label, scaled so that the weights of all items have a mean of 1.

    So the loss is still divided by the number of items, which the plan knows.

    Args:
        asked: The recipe's: balanced, or a map in which other labels weigh 1.
        labels: By id.
        counts: Items of the training split with each label. Without any, a label has no item to weigh: with balanced
            its weight is 1.

    Raises:
        ConfigError: A label that is not known, or weights that are 0 wherever there are items.
    """
    if isinstance(asked, str):
        raw = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / np.count_nonzero(counts), 1.0)
    else:
        named = {label_name(label): weight for label, weight in asked.items()}
        if unknown := [name for name in named if name not in labels]:
            raise ConfigError(f"no label {unknown[0]!r}. {nearest(unknown[0], labels)}", where=_KEY)
        raw = np.array([named.get(label, 1.0) for label in labels])
    total = float((raw * counts).sum())
    if not total:
        raise ConfigError(
            "are 0 for every label that the training split has: nothing would be learnt.",
            where=_KEY,
            fix="Give one of them a weight above 0.",
        )
    return (raw * counts.sum() / total).tolist()
