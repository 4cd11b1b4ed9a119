"""An adapter's folder put on its base, with every weight from one of the two."""

from pathlib import Path
from typing import Any

from onecurve.adapters.folder import described_in
from onecurve.adapters.read_back import given_by
from onecurve.errors import ConfigError
from onecurve.model.generation import read_generation_config

_NAMED = 5


def load_adapted(folder: Path, auto_model: Any, base: str, **options: Any) -> Any:
    """Load an adapter's base and put the adapter on it.

    The base may lack a head, or have one for other labels, where the adapter brings its own.

    Args:
        folder: The adapter's.
        auto_model: transformers' class for the base.
        base: Its folder or hub name.
        **options: Of the class's `from_pretrained`, such as `config`.

    Returns:
        The PEFT model.

    Raises:
        ConfigError: Neither the base nor the adapter has one of the weights, or PEFT misses one.
        OSError, ValueError, RuntimeError: From transformers and PEFT, of files that cannot be read or do not fit.
    """
    from peft import PeftModel, load_peft_weights

    import onecurve.adapters.bottleneck  # noqa: F401  registers the bottleneck adapter with PEFT

    model, found = auto_model.from_pretrained(base, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    drawn = {name for name, _, _ in found["mismatched_keys"]} | set(found["missing_keys"])
    drawn &= {name for name, _ in model.named_parameters()}
    read_generation_config(model, described_in(folder))
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except KeyError as error:
        raise ConfigError(f"{str(folder)!r} is incomplete: PEFT cannot load it: it lacks {error}.") from None
    if drawn:
        given = given_by(adapted, load_peft_weights(str(folder), device="cpu"))
        brought = {f".{name.replace('.modules_to_save.default', '')}" for name in given}
        _check_given([name for name in sorted(drawn) if not any(b.endswith(f".{name}") for b in brought)], folder, base)
    return adapted


def _check_given(absent: list[str], folder: Path, base: str) -> None:
    if absent:
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        raise ConfigError(
            f"the adapter {str(folder)!r} is incomplete: neither it nor its base {base!r} has "
            f"{', '.join(absent[:_NAMED])}{more} in the shape that the config describes.",
            fix="Save the adapter with its head (PEFT's modules_to_save), or name the base that it was trained on in "
            "adapter_config.json.",
        )
