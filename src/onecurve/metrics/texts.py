"""Scores of generated texts against references: which there are, and how they are asked for."""

import re
from collections.abc import Sequence
from typing import Any

from onecurve.metrics import rouge, translation

NAMES = {"bleu": ("bleu",), "chrf": ("chrf",), "rouge": rouge.NAMES, "exact_match": ("exact_match",)}
"""Metric -> the numbers that it gives; all are better when higher."""
PACKAGES = {"bleu": translation.PACKAGES, "chrf": translation.PACKAGES}
"""Metric -> what must be installed for it."""


def answer_of(text: str, pattern: str | None) -> str | None:
    """Return what of a text is compared: all of it, or a pattern's last match (of its last group, where it has one).

    None where the pattern matches nowhere.
    """
    if pattern is None:
        return text.strip()
    found = list(re.finditer(pattern, text))
    return (found[-1][found[-1].re.groups] or "").strip() if found else None


def score_texts(
    pairs: Sequence[tuple[str, str]], metrics: Sequence[str], bleu_tokenizer: str, answer_pattern: str | None
) -> dict[str, Any]:
    """Score texts.

    Args:
        pairs: (generated text, reference).
        metrics: Of `NAMES`.
        bleu_tokenizer: sacrebleu's tokenizer.
        answer_pattern: What of a text exact_match compares.

    Returns:
        The numbers: BLEU and chrF from 0 to 100, as sacrebleu has them, the others from 0 to 1; and `signatures`.
    """
    scores: dict[str, Any] = {}
    signatures: dict[str, str] = {}
    for metric in dict.fromkeys(metrics):
        if metric == "bleu":
            scores["bleu"], signatures["bleu"] = translation.score_bleu(pairs, bleu_tokenizer)
        elif metric == "chrf":
            scores["chrf"], signatures["chrf"] = translation.score_chrf(pairs)
        elif metric == "rouge":
            scores |= rouge.score_rouge(pairs)
        else:
            right = (answer_of(text, answer_pattern) == answer_of(other, answer_pattern) for text, other in pairs)
            scores["exact_match"] = sum(right) / len(pairs)
    return scores | ({"signatures": signatures} if signatures else {})
