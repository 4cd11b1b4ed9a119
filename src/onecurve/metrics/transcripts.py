"""Word and character error rates of transcripts, from errors summed over a whole split."""

from collections.abc import Sequence
from typing import Any


def score_transcripts(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Score pairs of (transcript, reference text); no reference may be blank.

    Not an `evaluate.Metric`: jiwer, which the one on the hub wraps too, takes whole lists.

    Returns:
        wer and cer: substitutions, deletions and insertions over the words (characters, blanks included) of all
        references; words and characters: these counts.

    Source:
        jiwer, by the Levenshtein distance; errors are summed over the split, because a mean of rates would weigh short
        texts as much as long ones.
    """
    import jiwer

    transcripts, references = map(list, zip(*pairs, strict=True))
    words = jiwer.process_words(references, transcripts)
    characters = jiwer.process_characters(references, transcripts)
    return {"wer": words.wer, "cer": characters.cer, "words": _counts(words), "characters": _counts(characters)}


def _counts(found: Any) -> dict[str, int]:
    wrong = {name: getattr(found, name) for name in ("substitutions", "deletions", "insertions")}
    return {**wrong, "references": found.hits + found.substitutions + found.deletions}
