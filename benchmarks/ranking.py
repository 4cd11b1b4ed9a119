"""Fine-tunes rankers on TrecQA and a pair model on SICK, and scores them with plain sentence-transformers.

    python benchmarks/ranking.py trecqa FOLDER [--work runs/ranking] [--model models/all-MiniLM-L6-v2]
    python benchmarks/ranking.py sick FOLDER

FOLDER holds TrecQA's train.csv, dev.csv and test.csv (qtext, label, atext), or SICK's train.txt, dev.txt and test.txt
(tab-separated). Of TrecQA's questions those with both a right and a wrong candidate are scored, as papers do ("clean").
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
from sklearn.metrics import average_precision_score

_NEGATIVES = 4
_COMMON = {
    "optim": {"warmup_steps": 10, "weight_decay": 0.01},
    "train": {"mixed_precision": "auto", "group_by_length": True},
    "checkpoint": {"every": 0},
}


def main(argv: list[str]) -> int:
    """Print a line of JSON a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["trecqa", "sick"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/ranking"))
    parser.add_argument("--model", default="models/all-MiniLM-L6-v2")
    asked = parser.parse_args(argv)
    asked.work.mkdir(parents=True, exist_ok=True)
    for name, scores in (_trecqa if asked.task == "trecqa" else _sick)(asked.folder, asked.work, asked.model):
        print(json.dumps({"data": asked.task, "model": name, **scores}), flush=True)
    return 0


def _trecqa(folder: Path, work: Path, model: str) -> Iterable[tuple[str, dict[str, float]]]:
    queries = {split: _candidates(folder / f"{split}.csv") for split in ("train", "dev", "test")}
    test = {query: found for query, found in queries["test"].items() if len({label for _, label in found}) == 2}
    yield "word overlap", _ranked(test, _overlap)
    yield "bi-encoder before", _ranked(test, _by_cosine(model))
    for split in ("train", "dev"):
        _write(work / f"trecqa-lists-{split}.jsonl", _lists(queries[split]))
        _write(work / f"trecqa-triplets-{split}.jsonl", _triplets(queries[split]))
    for name, rows, settings, lr, batch, steps in (
        ("bi-encoder", "triplets", {"name": "text_embedding"}, 2e-5, 32, 33),
        ("cross-encoder pointwise", "lists", {"name": "text_ranking", "loss": "pointwise"}, 5e-5, 8, 144),
        ("cross-encoder listwise", "lists", {"name": "text_ranking", "loss": "listwise"}, 5e-5, 8, 144),
    ):
        recipe = {
            **_COMMON,
            "task": settings,
            "model": {"path": model},
            "data": {
                "train": str(work / f"trecqa-{rows}-train.jsonl"),
                "eval": str(work / f"trecqa-{rows}-dev.jsonl"),
                "max_length": 96,
                "on_long": "truncate",
            },
            "optim": {**_COMMON["optim"], "lr": lr},
            "train": {
                **_COMMON["train"],
                "max_steps": steps,
                "global_batch_size": batch,
                "micro_batch_size": batch // 4,
            },
            "eval": {"every": 11 if rows == "triplets" else 48, "best_metric": "mrr" if rows == "triplets" else "map"},
        }
        trained = str(_train(recipe, work / name.replace(" ", "-")))
        yield name, _ranked(test, _by_cosine(trained) if rows == "triplets" else _by_cross_encoder(trained))


def _sick(folder: Path, work: Path, model: str) -> Iterable[tuple[str, dict[str, float]]]:
    for split in ("train", "dev", "test"):
        with (folder / f"{split}.txt").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        _write(
            work / f"sick-{split}.jsonl",
            (
                {"text": r["sentence_A"], "text_pair": r["sentence_B"], "label": float(r["relatedness_score"])}
                for r in rows
            ),
        )
    pairs = [(r["sentence_A"], r["sentence_B"]) for r in rows]
    gold = np.array([float(r["relatedness_score"]) for r in rows])
    encoder = SentenceTransformer(model, device="cpu")
    one, other = (encoder.encode([p[i] for p in pairs], normalize_embeddings=True) for i in (0, 1))
    yield "bi-encoder before", _correlated((one * other).sum(1), gold)
    recipe = {
        **_COMMON,
        "task": {"name": "text_classification", "problem_type": "regression"},
        "model": {"path": model},
        "data": {name: str(work / f"sick-{split}.jsonl") for name, split in (("train", "train"), ("eval", "dev"))},
        "optim": {**_COMMON["optim"], "lr": 1e-4},
        "train": {**_COMMON["train"], "epochs": 3, "global_batch_size": 32, "micro_batch_size": 16},
        "eval": {"every": 140, "best_metric": "pearson"},
    }
    trained = _train(recipe, work / "sick-regression")
    answers = _predicted(trained, work / "sick-test.jsonl", work / "sick-answers.jsonl")
    yield "pair regression", _correlated(answers, gold)


def _candidates(path: Path) -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["qtext"], []).append((row["atext"], int(row["label"])))
    return found


def _lists(queries: dict[str, list[tuple[str, int]]]) -> Iterable[dict[str, Any]]:
    """Yield a query's documents in lists of at most 16, with at most four right ones in each."""
    for query, found in queries.items():
        right = [text for text, label in found if label]
        wrong = [text for text, label in found if not label]
        if right and wrong:
            size = 16 - min(len(right), 4)
            for start in range(0, len(wrong), size):
                share = right[:4] + wrong[start : start + size]
                yield {
                    "query": query,
                    "documents": share,
                    "labels": [1] * len(right[:4]) + [0] * (len(share) - len(right[:4])),
                }


def _triplets(queries: dict[str, list[tuple[str, int]]]) -> Iterable[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for query, found in queries.items():
        wrong = [text for text, label in found if not label]
        if len(wrong) >= _NEGATIVES:
            for text, label in found:
                if label:
                    drawn = rng.choice(len(wrong), _NEGATIVES, replace=False)
                    yield {"query": query, "positive": text, "negative": [wrong[i] for i in drawn]}


def _train(recipe: dict[str, Any], output: Path) -> Path:
    path = output.with_suffix(".json")
    path.write_text(json.dumps({"output_dir": str(output), **recipe}))  # JSON is YAML
    subprocess.run([sys.executable, "train.py", str(path), "--train.resume", "never"], check=True, stdout=sys.stderr)
    return output / "model"


def _predicted(model: Path, rows: Path, answers: Path) -> np.ndarray:
    words = [sys.executable, "-m", "onecurve", "predict", str(model), "--input", str(rows), "--output", str(answers)]
    subprocess.run([*words, "--json"], check=True, stdout=sys.stderr)
    return np.array([json.loads(line)["value"] for line in answers.read_text().splitlines()])


def _overlap(query: str, texts: list[str]) -> np.ndarray:
    words = set(query.lower().split())
    return np.array([len(words & set(text.lower().split())) / len(words) for text in texts])


def _by_cosine(model: str) -> Any:
    encoder = SentenceTransformer(model, device="cpu")
    return lambda query, texts: (
        encoder.encode(texts, normalize_embeddings=True) @ encoder.encode(query, normalize_embeddings=True)
    )


def _by_cross_encoder(model: str) -> Any:
    encoder = CrossEncoder(model, device="cpu", max_length=96)
    return lambda query, texts: encoder.predict([(query, text) for text in texts])


def _ranked(queries: dict[str, list[tuple[str, int]]], score: Any) -> dict[str, float]:
    precisions, reciprocals = [], []
    for query, found in queries.items():
        texts, labels = [text for text, _ in found], np.array([label for _, label in found])
        scores = np.asarray(score(query, texts))
        precisions.append(average_precision_score(labels, scores))
        reciprocals.append(1 / (1 + int(np.argmax(labels[np.argsort(-scores, kind="stable")]))))
    return {"map": float(np.mean(precisions)), "mrr": float(np.mean(reciprocals)), "queries": len(queries)}


def _correlated(scores: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    pearson, spearman = float(pearsonr(scores, gold)[0]), float(spearmanr(scores, gold)[0])
    return {"pearson": pearson, "spearman": spearman, "pairs": len(gold)}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
