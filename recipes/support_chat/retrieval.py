"""Finds the passages that answer a question: by a bi-encoder's vectors, or by words (BM25)."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from passages import Passage, sentences

import onecurve
from onecurve.errors import ConfigError

_K1, _B = 1.5, 0.75


class Found(NamedTuple):
    """A passage and how well it fits: higher is better."""

    passage: Passage
    score: float


class Search(Protocol):
    """Scores passages, or any texts, by a question."""

    passages: list[Passage]

    def scores(self, question: str) -> np.ndarray:
        """Return a score for each passage: float [passages]."""

    def compare(self, question: str, texts: Sequence[str]) -> np.ndarray:
        """Return a score for each of some texts: float [texts]."""


def top(search: Search, question: str, count: int) -> list[Found]:
    """Return the best passages, the best first; of equal ones the earlier in the folder."""
    scores = search.scores(question)
    return [Found(search.passages[place], float(scores[place])) for place in np.argsort(-scores, kind="stable")[:count]]


def best_sentence(search: Search, question: str, passage: Passage) -> str:
    """Return the sentence of a passage that fits a question best: an answer without a language model."""
    parts = sentences(passage.text)
    return parts[int(np.argmax(search.compare(question, parts)))]


class Encoder:
    """A bi-encoder, and the vectors of the passages, which are computed once and kept in a file."""

    def __init__(self, folder: Path, passages: list[Passage], cache: Path) -> None:
        """Embed the passages, unless the cache has their vectors.

        Args:
            folder: A model of the task text_embedding, or any encoder.
            passages: What is searched.
            cache: A folder; files in it are named by what the model and the passages hold.

        Raises:
            ConfigError: The folder is no such model, or a passage is too long for it.
        """
        self.passages, self.model = passages, onecurve.load(folder, task="text_embedding")
        texts = [passage.whole for passage in passages]
        path = cache / f"{_key(folder, texts)}.npy"
        if path.is_file():
            self.vectors = np.load(path)
            return
        self.vectors = self._embed("document", texts)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npy")
        np.save(unfinished, self.vectors)
        os.replace(unfinished, path)

    def scores(self, question: str) -> np.ndarray:
        """Return the cosine of each passage with a question."""
        return self.vectors @ self._embed("query", [question])[0]

    def compare(self, question: str, texts: Sequence[str]) -> np.ndarray:
        """Return the cosine of each text with a question."""
        return self._embed("document", texts) @ self._embed("query", [question])[0]

    def _embed(self, kind: str, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [texts, size]."""
        answers = self.model.predict([{kind: text} for text in texts], batch_size=32)
        for text, answer in zip(texts, answers, strict=True):
            if "error" in answer or ("truncated" in answer and kind == "document"):
                why = answer.get("error", "is longer than the encoder reads")
                raise ConfigError(f"{text[:60]!r} {why}.", fix="Raise data.max_length in embed.yaml and train again.")
        return np.array([answer["embedding"] for answer in answers], dtype=np.float32)


def _key(folder: Path, texts: Sequence[str]) -> str:
    """Return a name for what a model folder and the passages hold."""
    folder = folder if (folder / "config.json").exists() or not (folder / "model").is_dir() else folder / "model"
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".txt"):
            digest.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


class Words:
    """BM25 (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009) over words in lower case."""

    def __init__(self, passages: list[Passage]) -> None:
        self.passages = passages
        self.counts = [Counter(_words(passage.whole)) for passage in passages]
        holding = Counter(word for counts in self.counts for word in counts)
        total = len(passages)
        self.weights = {word: log(1 + (total - count + 0.5) / (count + 0.5)) for word, count in holding.items()}
        self.length = sum(map(Counter.total, self.counts)) / total

    def scores(self, question: str) -> np.ndarray:
        """Return each passage's BM25."""
        return self._scores(question, self.counts)

    def compare(self, question: str, texts: Sequence[str]) -> np.ndarray:
        """Return each text's BM25, with the passages' counts of words."""
        return self._scores(question, [Counter(_words(text)) for text in texts])

    def _scores(self, question: str, counted: Sequence[Counter[str]]) -> np.ndarray:
        asked = [word for word in _words(question) if word in self.weights]
        scores = []
        for counts in counted:
            stretch = _K1 * (1 - _B + _B * counts.total() / self.length)
            scores.append(
                sum(self.weights[word] * counts[word] * (_K1 + 1) / (counts[word] + stretch) for word in asked)
            )
        return np.array(scores)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
