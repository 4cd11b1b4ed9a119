"""Which settings decide a run's curve, and which only say where it runs and what is told of it."""

from typing import Any

FREE_TO_CHANGE = (
    "output_dir",
    "data.train",  # the fingerprint says whether the examples are the same
    "data.eval",
    "data.test",
    "data.cache_dir",
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "train.group_by_length",
    "train.resume",
    "train.stop_after",
    "train.time_limit",
    "train.hang_timeout",
    "train.allow_changes",
    "train.emulate",
    "train.activations",
    "train.logits",
    "train.compile",  # over 20 steps with dropout losses parted by 1e-7 of their size, gradient norms by 2e-7
    "train.gradient_checkpointing",  # what train.activations recompute was called
    # These act only on a step that goes wrong, and a run that went wrong is launched again with another answer; each
    # update left out is told and kept in the checkpoint
    "train.on_nonfinite",
    "train.on_spike",
    "train.spike_window",
    "train.spike_sigma",
    "train.max_skipped",
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
