"""Reward functions of recipes/grpo.yaml: lists in, a list of numbers out, an entry for each completion."""


def correct(completions: list[str], answer: list[str]) -> list[float]:
    """1 where a completion is the answer, and nothing else."""
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]
