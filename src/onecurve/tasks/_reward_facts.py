"""What there is to tell of completions and their rewards, by TRL's names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onecurve.tasks.base import Example


def facts(examples: Sequence[Example], names: Sequence[str], group: int) -> dict[str, float]:
    """Return what there is to tell of a training step.

    Args:
        examples: One for each completion, groups together.
        names: The reward functions.
        group: Completions of one prompt.
    """
    rewards = np.array([example["reward"] for example in examples])
    each = np.array([example["rewards"] for example in examples])
    lengths = np.array([len(example["completion"]) for example in examples])
    found = {"reward": rewards.mean(), "reward_std": rewards.std(ddof=1)}
    for number, name in enumerate(names):
        found[f"rewards/{name}/mean"] = each[:, number].mean()
        found[f"rewards/{name}/std"] = each[:, number].std(ddof=1)
    found["frac_reward_zero_std"] = np.mean(np.ptp(rewards.reshape(-1, group), 1) == 0)
    found["completions/mean_length"], found["completions/max_length"] = lengths.mean(), lengths.max()
    found["completions/clipped_ratio"] = np.mean([not example["ended"] for example in examples])
    found["entropy"] = np.average([example["entropy"] for example in examples], weights=lengths)
    if "reference_logps" in examples[0]:
        apart = [np.subtract(example["reference_logps"], example["logps"]) for example in examples]
        found["kl"] = np.mean([value for of_one in apart for value in np.exp(of_one) - of_one - 1])
    return {name: float(value) for name, value in found.items()}


def scores(pairs: Sequence[tuple[Any, Any]], names: Sequence[str]) -> dict[str, float]:
    """Return the scores of a split.

    Args:
        pairs: (reward, entropy, whether it ended, the reward of each function) and the length of each completion.
        names: The reward functions.
    """
    table, lengths = np.array([of_one for of_one, _ in pairs]), np.array([length for _, length in pairs])
    found = {
        "reward": table[:, 0].mean(),
        "completions/mean_length": lengths.mean(),
        "completions/clipped_ratio": 1 - table[:, 2].mean(),
        "entropy": np.average(table[:, 1], weights=lengths),
    }
    for number, name in enumerate(names):
        found[f"rewards/{name}/mean"] = table[:, 3 + number].mean()
    return {name: float(value) for name, value in found.items()}
