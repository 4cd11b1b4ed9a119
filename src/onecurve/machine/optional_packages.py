"""Keeps optional packages, which transformers and PEFT would import if installed, out of runs that do not need them."""

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from onecurve.config import Recipe
from onecurve.config.sections.tracking import TRACKERS
from onecurve.errors import ConfigError

_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "sacrebleu": "'onecurve[text]'"}
"""Packages that are installed under another name than they are imported."""


def require(packages: Iterable[str], where: str, what: str) -> None:
    """Check that the packages that a recipe needs are installed.

    Args:
        packages: As they are imported.
        where: The setting that asks for them.
        what: Its value.

    Raises:
        ConfigError: One is not installed.
    """
    missing = [name for name in sorted(packages) if find_spec(name) is None]
    if missing:
        needed = " ".join(_DISTRIBUTIONS.get(name, name) for name in missing)
        raise ConfigError(f"{what} needs {', '.join(missing)}.", where=where, fix=f"Install: pip install {needed}")


def require_trackers(names: Iterable[str]) -> None:
    """Check that the recipe's trackers are installed: Accelerate leaves the others out without a word.

    Raises:
        ConfigError: One is not.
    """
    for name in names:
        if not any(find_spec(package) for package in TRACKERS[name]):
            require(TRACKERS[name][:1], "tracking.trackers", name)


def keep_out_unused(recipe: Recipe, needed: frozenset[str]) -> None:
    """Import transformers, and have it and PEFT find none of what a recipe does not ask for.

    bitsandbytes and torchao stay out as long as the process lives; scipy, which transformers needs for the losses of
    object detection alone, can be imported when metrics want it.

    Args:
        recipe: The run.
        needed: Packages that its task imports.
    """
    used = set(needed)
    if recipe.model.quantization or recipe.optim.name == "adamw_8bit":
        used.add("bitsandbytes")
    if recipe.train.mixed_precision == "fp8":
        used.add("torchao")
    absent: dict[str, Any] = dict.fromkeys({"bitsandbytes", "torchao", "scipy"} - used - sys.modules.keys())
    sys.modules.update(absent)  # as Python has it, None there is a module that cannot be found
    import transformers  # noqa: F401  it looks for scipy once, and remembers

    if "scipy" in absent:
        del sys.modules["scipy"]
