"""onecurve: one fine-tuning run, one curve, wherever it is launched."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onecurve.api import Model, Result, load, predict, train

__version__ = "0.1.0"
__all__ = ["Model", "Result", "__version__", "load", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from onecurve import api  # at first use: every import of a part of the package passes here

    return getattr(api, name)
