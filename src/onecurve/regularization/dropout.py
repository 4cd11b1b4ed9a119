"""Dropout: the model's probabilities, found and set to one value. Source: Srivastava et al., Dropout, 2014."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_OTHERS = ("layerdrop", "drop_path", "droppath", "drop_prob", "drop_rate")
"""What leaves out whole layers or branches, not values."""


def set_in_config(config: Any, value: float) -> None:
    """Set every dropout probability of a model's config and of the configs within.

    A field that is null takes another's value and stays so.
    """
    for name, held in list(vars(config).items()):
        if hasattr(held, "to_diff_dict"):
            set_in_config(held, value)
        elif _is_probability(name, held):
            setattr(config, name, value)


def set_in_modules(model: nn.Module, value: float) -> str:
    """Set every dropout probability of a model's modules; say what they were, and how many."""
    before = []
    for module, name, probability in _probabilities(model):
        setattr(module, name, value)
        before.append(probability)
    return f"{' and '.join(f'{probability:g}' for probability in sorted(set(before)))} in {len(before)} places"


def largest(model: nn.Module) -> float | None:
    """Return the largest dropout probability of a model's modules; None where it has no dropout."""
    return max((probability for *_, probability in _probabilities(model)), default=None)


def _probabilities(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Yield where each dropout probability is kept: a module, its attribute, and the value."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            yield module, "p", module.p
        else:
            for name, held in list(vars(module).items()):
                if _is_probability(name, held):
                    yield module, name, held


def _is_probability(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and "drop" in name and not any(other in name for other in _OTHERS) and 0 <= value <= 1
