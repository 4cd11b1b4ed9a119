"""Which settings decide a run's curve, and which only affect where it runs and what it logs."""

from typing import Any

FREE_TO_CHANGE = (
    "output_dir",
    # Scores only
    *(f"task.{name}" for name in ("generate", "metrics", "bleu_tokenizer", "answer_pattern", "eval_sampled")),
    "task.replay",  # where completions come from, not what they are
    "task.server",  # a job's server has an address of its own; what it drew is recorded
    "data.train",  # the fingerprint tells whether the examples are the same
    "data.temperature",  # the weights that it gives are compared
    "data.eval",
    "data.test",
    "data.max_samples",
    "data.cache_dir",
    "data.stage_to",
    "regularization.synonyms",  # what is in the file counts
    "regularization.text_function",  # its code counts
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "train.group_by_length",
    "train.resume",
    "train.stop_after",
    "train.time_limit",
    "train.hang_timeout",
    "train.allow_changes",
    "train.emulate",
    "train.deterministic",  # which of several orders sums are made in
    "train.activations",
    "train.logits",
    "train.compile",  # over 20 steps with dropout, losses differed by a relative 1e-7, gradient norms by 2e-7
    "train.gradient_checkpointing",  # former name of train.activations: recompute
    # These act only on a bad step, and a run that stopped at one is launched again with another value. Each skipped
    # update is logged and recorded in the checkpoint
    "train.on_nonfinite",
    "train.on_spike",
    "train.spike_window",
    "train.spike_sigma",
    "train.max_skipped",
    "eval",
    "checkpoint",
    "tracking",
)
"""Settings, and whole sections, that do not affect the curve."""


def curve_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten resolved settings to dotted keys, without those that do not affect the curve."""
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
