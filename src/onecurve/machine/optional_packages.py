"""Packages that transformers and PEFT import wherever they are installed, kept out of a run that has no use of them."""

import sys
from typing import Any

from onecurve.config import Recipe


def keep_out_unused(recipe: Recipe) -> None:
    """Import transformers, and have it and PEFT find none of what a recipe does not ask for.

    bitsandbytes and torchao stay out as long as the process lives; scipy, which transformers needs for the losses of
    object detection alone, can be imported when metrics want it.
    """
    used = set()
    if recipe.model.quantization or recipe.optim.name == "adamw_8bit":
        used.add("bitsandbytes")
    if recipe.train.mixed_precision == "fp8":
        used.add("torchao")
    absent: dict[str, Any] = dict.fromkeys({"bitsandbytes", "torchao", "scipy"} - used - sys.modules.keys())
    sys.modules.update(absent)  # as Python has it, None there is a module that cannot be found
    import transformers  # noqa: F401  it looks for scipy once, and remembers

    if "scipy" in absent:
        del sys.modules["scipy"]
