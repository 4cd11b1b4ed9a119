"""Okapi BM25 over a few hundred texts, as a baseline without any model."""

import math
import re
from collections import Counter
from collections.abc import Mapping


def words(text: str) -> list[str]:
    """Return the words of a text, in small letters."""
    return re.findall(r"\w+", text.lower())


class BM25:
    """Scores texts for a query (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009).

    The weight of a word is log(1 + (N - n + 0.5) / (n + 0.5)), as Lucene has it, which is never negative.
    """

    def __init__(self, texts: Mapping[str, str], k1: float = 1.2, b: float = 0.75) -> None:
        self.counts = {name: Counter(words(text)) for name, text in texts.items()}
        self.mean = sum(one.total() for one in self.counts.values()) / len(self.counts)
        self.there = Counter(word for one in self.counts.values() for word in one)
        self.k1, self.b = k1, b

    def scores(self, query: str) -> dict[str, float]:
        """Return the score of each text; a word that the query repeats counts as often."""
        asked = Counter(words(query))
        rarity = {
            word: times * math.log(1 + (len(self.counts) - self.there[word] + 0.5) / (self.there[word] + 0.5))
            for word, times in asked.items()
        }
        found = {}
        for name, there in self.counts.items():
            norm = self.k1 * (1 - self.b + self.b * there.total() / self.mean)
            found[name] = sum(rare * there[w] * (self.k1 + 1) / (there[w] + norm) for w, rare in rarity.items())
        return found
