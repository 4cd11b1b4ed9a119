"""BLEU and chrF of translations, by sacrebleu, with the signatures that make them comparable."""

from collections.abc import Sequence
from typing import Any

PACKAGES = frozenset({"sacrebleu"})


def score_bleu(pairs: Sequence[tuple[str, str]], tokenizer: str) -> tuple[float, str]:
    """Return the corpus BLEU of (text, reference), from 0 to 100, and sacrebleu's signature.

    Args:
        pairs: Texts and their references, neither of them tokenised.
        tokenizer: sacrebleu's: 13a, intl, zh, char or none.

    Source:
        Post, A call for clarity in reporting BLEU scores, 2018.
    """
    from sacrebleu.metrics import BLEU

    return _score(BLEU(tokenize=tokenizer), pairs)


def score_chrf(pairs: Sequence[tuple[str, str]]) -> tuple[float, str]:
    """Return the corpus chrF2 of (text, reference), from 0 to 100, and sacrebleu's signature.

    Source:
        Popović, chrF: character n-gram F-score for automatic MT evaluation, 2015.
    """
    from sacrebleu.metrics import CHRF

    return _score(CHRF(), pairs)


def _score(metric: Any, pairs: Sequence[tuple[str, str]]) -> tuple[float, str]:
    texts, references = zip(*pairs, strict=True)
    score = metric.corpus_score(list(texts), [list(references)])
    return float(score.score), str(metric.get_signature())
