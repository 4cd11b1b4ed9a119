"""Which settings decide a run's curve, and which only say where it runs and what is told of it."""

from typing import Any

FREE_TO_CHANGE = (
    "output_dir",
    "data.train",  # the fingerprint says whether the examples are the same
    "data.eval",
    "data.test",
    "data.cache_dir",
    "train.micro_batch_size",
    "train.resume",
    "train.stop_after",
    "train.allow_changes",
    "train.emulate",
    "train.gradient_checkpointing",
    "eval",
    "checkpoint",
    "tracking",
)
"""Settings, and whole sections, that do not decide the curve."""


def curve_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten resolved settings to dotted keys, leaving out what does not decide the curve."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in FREE_TO_CHANGE:
            continue
        if isinstance(value, dict):
            flat |= curve_settings(value, f"{key}.")
        else:
            flat[key] = value
    return flat
