"""The last word on a candidate: a weighted sum of features, with weights from a logistic regression."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

FEATURES = ("similarity", "relevance", "popularity", "recency")
"""Cosine of the bi-encoder; score of the cross-encoder; log(1 + weighted actions of the last 30 days); 0.5 to the power
of an item's age over 30 days."""


@dataclass(frozen=True)
class Blend:
    """A score is the sum over features of weight x (value - mean) / deviation."""

    weights: Mapping[str, float]
    means: Mapping[str, float]
    deviations: Mapping[str, float]

    @classmethod
    def fit(cls, rows: Sequence[Mapping[str, float]], labels: Sequence[bool]) -> "Blend":
        """Fit a logistic regression (L2, C = 1) on standardised features of candidates, and whether each was chosen.

        Raises:
            ValueError: All were chosen, or none.
        """
        from sklearn.linear_model import LogisticRegression

        values = np.asarray([[row[name] for name in FEATURES] for row in rows], dtype=float)
        means, deviations = values.mean(0), values.std(0)
        deviations[deviations == 0] = 1.0  # a feature that never varies weighs nothing
        fitted = LogisticRegression(C=1.0).fit((values - means) / deviations, np.asarray(labels))
        found = (fitted.coef_[0], means, deviations)
        return cls(*(dict(zip(FEATURES, map(float, one), strict=True)) for one in found))

    def parts(self, features: Mapping[str, float]) -> dict[str, float]:
        """Return what each feature adds to a candidate's score."""
        return {n: self.weights[n] * (features[n] - self.means[n]) / self.deviations[n] for n in FEATURES}

    def score(self, features: Mapping[str, float]) -> float:
        """Return a candidate's score."""
        return sum(self.parts(features).values())

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Blend":
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
