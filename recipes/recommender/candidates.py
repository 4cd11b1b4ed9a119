"""A user's candidates and their features: the bi-encoder and popularity find them, the cross-encoder reads them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from shop import HALF_LIFE, Mistake, Shop, profile

NEAREST, POPULAR = 10, 5
"""Candidates of a user: the items nearest to the user's text, and the most popular ones besides."""

Vectors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """A user, as the shop knew the user at the beginning of a day."""

    user: str
    text: str
    nearest: Sequence[str]
    """All items that are new to the user, the nearest first."""
    popular: Sequence[str]
    """The same items, the most popular first."""
    features: Mapping[str, Mapping[str, float]]
    """Of each candidate."""


def vectors(run: Path, texts: Sequence[str], column: str) -> list[np.ndarray]:
    """Return the bi-encoder's vector of each text, of length 1.

    Args:
        run: Where the models lie.
        texts: The texts.
        column: query for users, document for items.
    """
    told = _predict(run / "embedding", [{column: text} for text in texts])
    return [np.asarray(one["embedding"]) for one in told]


def item_vectors(run: Path, shop: Shop) -> Vectors:
    """Return the vector of each item of the shop."""
    return dict(zip(shop.items, vectors(run, [item.text for item in shop.items.values()], "document"), strict=True))


def ask(run: Path, shop: Shop, day: date, users: Sequence[str], there: Vectors) -> list[Asked]:
    """Find each user's candidates and compute their features.

    Args:
        run: Where the models lie.
        shop: As it was at the beginning of the day.
        day: The day.
        users: Whom to ask for; each has done something.
        there: The vector of each item.
    """
    texts = [profile(shop, shop.of(user), day) for user in users]
    popularity = shop.popularity(day)
    found, rows = [], []
    for user, text, vector in zip(users, texts, vectors(run, texts, "query"), strict=True):
        known = {one.item for one in shop.of(user)}
        similarity = {item: float(vector @ there[item]) for item in shop.items if item not in known}
        nearest = sorted(similarity, key=lambda item: -similarity[item])
        popular = sorted(similarity, key=lambda item: (-popularity[item], item))
        picked = pick(nearest, popular)
        rows.append({"query": text, "documents": [shop.items[item].text for item in picked]})
        found.append((user, text, nearest, popular, picked, similarity))
    told = _predict(run / "ranking", rows)
    asked = []
    for (user, text, nearest, popular, picked, similarity), answer in zip(found, told, strict=True):
        features = {
            item: {
                "similarity": similarity[item],
                "relevance": relevance,
                "popularity": math.log1p(popularity[item]),
                "recency": 0.5 ** ((day - shop.items[item].out).days / HALF_LIFE),
            }
            for item, relevance in zip(picked, answer.get("scores", [answer.get("score")]), strict=True)
        }
        asked.append(Asked(user, text, nearest, popular, features))
    return asked


def pick(nearest: Sequence[str], popular: Sequence[str]) -> list[str]:
    """Return the candidates: the nearest, then the most popular of the others."""
    first = list(nearest[:NEAREST])
    return first + [item for item in popular if item not in first][:POPULAR]


def _predict(model: Path, rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    from onecurve import predict

    if not (model / "model" / "task.json").is_file():
        raise Mistake(f"{model} holds no trained model; `make models` trains both.")
    told = predict(model, rows, batch_size=16)  # type: ignore[arg-type]
    for row, answer in zip(rows, told, strict=True):
        if "error" in answer:
            raise Mistake(f"{model} cannot read {row}: {answer['error']}")
    return told
