"""Scores of tagged words: entities found whole and of the right type, and words tagged right."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

_OUTSIDE = "O"
_PREFIXES = frozenset("BIESLU")
Entity = tuple[str, int, int]
"""Type, and the words that it covers: from the first to, not including, the last."""


def has_entities(names: Sequence[str]) -> bool:
    """Whether tags are those of a scheme of entities (IOB, IOBES, BILOU) rather than, say, parts of speech."""
    inside = [name for name in names if name != _OUTSIDE]
    return _OUTSIDE in names and all(name[:2].endswith("-") and name[0] in _PREFIXES for name in inside)


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence, by the rules of CoNLL-2000's conlleval, which also read tags out of place.

    An entity ends before O, B, S and U, after E, L, S and U, and where the type changes; an I or E that continues
    nothing begins one.
    """
    found: list[Entity] = []
    start, kind, open_ = 0, "", False
    for place, tag in enumerate([*tags, _OUTSIDE]):
        prefix, _, name = tag.partition("-")
        continues = open_ and prefix in "IEL" and name == kind
        if open_ and not continues:
            found.append((kind, start, place))
            open_ = False
        if prefix != _OUTSIDE and not continues:
            start, kind, open_ = place, name, True
        if open_ and prefix in "ESLU":
            found.append((kind, start, place + 1))
            open_ = False
    return found


def score_tags(pairs: Sequence[tuple[list[int], list[int]]], names: Sequence[str]) -> dict[str, Any]:
    """Score sentences.

    Args:
        pairs: (predicted, right) tag ids of the words of each sentence; a predicted id of -1 is no tag.
        names: Tag names in the order of their ids.

    Returns:
        accuracy (of words), precision, recall and f1: with entities over all of them (Tjong Kim Sang and De Meulder,
        CoNLL-2003: an entity is right when its words and its type are), else the mean over the tags; and the same for
        each type or tag.
    """
    words = [(one, other) for predicted, right in pairs for one, other in zip(predicted, right, strict=True)]
    scores: dict[str, Any] = {"accuracy": sum(one == other for one, other in words) / len(words)}
    if not has_entities(names):
        return scores | _macro(words, names)
    named = [[entities([names[n] if n >= 0 else _OUTSIDE for n in tags]) for tags in pair] for pair in pairs]
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("found", "there", "right")}
    for found, there in named:
        counts["found"].update(kind for kind, *_ in found)
        counts["there"].update(kind for kind, *_ in there)
        counts["right"].update(kind for kind, *_ in set(found) & set(there))
    scores |= _f1(*(counts[name].total() for name in ("right", "found", "there")))
    kinds = sorted(counts["found"].keys() | counts["there"].keys())
    scores["per_type"] = {
        kind: _f1(*(counts[name][kind] for name in ("right", "found", "there"))) | {"support": counts["there"][kind]}
        for kind in kinds
    }
    return scores


def _macro(words: Sequence[tuple[int, int]], names: Sequence[str]) -> dict[str, Any]:
    """Score each tag, and their mean over those that occur, as scikit-learn's macro average does."""
    found, there = Counter(one for one, _ in words), Counter(other for _, other in words)
    right = Counter(one for one, other in words if one == other)
    per_tag = {
        name: _f1(right[n], found[n], there[n]) | {"support": there[n]}
        for n, name in enumerate(names)
        if found[n] or there[n]
    }
    keys = ("precision", "recall", "f1")
    means = {key: sum(one[key] or 0.0 for one in per_tag.values()) / len(per_tag) for key in keys}
    return {**means, "per_type": per_tag}


def _f1(right: int, found: int, there: int) -> dict[str, float | None]:
    """Precision, recall and F1; None where there is nothing to divide by."""
    precision, recall = right / found if found else None, right / there if there else None
    return {"precision": precision, "recall": recall, "f1": 2 * right / (found + there) if found + there else None}
