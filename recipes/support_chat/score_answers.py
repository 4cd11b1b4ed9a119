"""Measures the support chat by the rule in README.md, and prints the tables.

    python recipes/support_chat/score_answers.py [--runs runs/support_chat runs/support_chat-1 ...]

Retrieval and answers are scored on questions-test.jsonl, preferences on what dpo.yaml wrote of its test split.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from answer import Bot, read_threshold
from passages import Passage, read_documents
from prompt import NOT_FOUND
from retrieval import Encoder, Search, Words, top
from training_rows import gold, holds, read_questions

import onecurve
from onecurve.config import read_yaml
from onecurve.errors import ConfigError, DataError, UserError

HERE = Path(__file__).parent
RESAMPLES = 10_000


def recall(text: str, facts: Sequence[Sequence[str]]) -> float:
    """Return the share of the facts that a text has."""
    return sum(holds(text, fact) for fact in facts) / len(facts)


def rank(search: Search, question: str, wanted: Passage) -> int:
    """Return the place of a passage among all, from 1."""
    found = [one.passage for one in top(search, question, len(search.passages))]
    return found.index(wanted) + 1


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by a bootstrap over questions (percentiles)."""
    numbers = np.asarray(values)
    drawn = np.random.default_rng(seed).integers(len(numbers), size=(RESAMPLES, len(numbers)))
    low, high = np.percentile(numbers[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)


def preferred(lines: Sequence[Mapping[str, float]], beta: float) -> dict[str, float]:
    """Return how DPO's held-out pairs fare: `before`, `after`: share of pairs whose chosen answer is the likelier one.

    `accuracy` and `margin` are of the rewards: how far the model has moved from the one before.
    """

    def share(differences: Sequence[float]) -> float:
        return sum(one > 0 for one in differences) / len(differences)

    margins = [line["rewards/chosen"] - line["rewards/rejected"] for line in lines]
    after = [line["logps/chosen"] - line["logps/rejected"] for line in lines]
    before = [one - margin / beta for one, margin in zip(after, margins, strict=True)]
    numbers = (share(before), share(after), share(margins), float(np.mean(margins)))
    return dict(zip(("before", "after", "accuracy", "margin"), numbers, strict=True))


def read_test(path: Path) -> list[dict[str, Any]]:
    """Return the test questions.

    Raises:
        DataError: `facts` are not lists of spellings, or are there without a document, or missing with one.
    """
    rows = read_questions(path, "facts")
    for row in rows:
        facts = row["facts"]
        is_fit = isinstance(facts, list) and all(isinstance(fact, list) and fact for fact in facts)
        if not is_fit or not all(isinstance(spelling, str) and spelling for fact in facts for spelling in fact):
            raise DataError(f"the facts of {row['question']!r} must be a list of lists of spellings.", where=str(path))
        if bool(facts) != (row.get("document") is not None):
            raise DataError(f"{row['question']!r} needs both facts and a document, or neither.", where=str(path))
    return rows


def scored(bot: Bot, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Return the answer to each question and its score: the share of its facts, or whether it is refused."""
    answers = [answer.text for answer in bot.answer_all([row["question"] for row in rows])]
    return [
        (text, recall(text, row["facts"]) if row["facts"] else float(NOT_FOUND.lower() in text.lower()))
        for row, text in zip(rows, answers, strict=True)
    ]


def model_folder(name: str, cache_dir: Path | None = None) -> Path:
    """Return the folder of a model: as it is, or of a hub name where train.py has downloaded it.

    Raises:
        ConfigError: There is neither.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, cache_dir=cache_dir, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise ConfigError(f"{name!r} is no folder, and the hub's cache does not have it.", where="--model") from None


def bots(run: Path, searches: Mapping[str, Search], asked: argparse.Namespace) -> list[tuple[str, Bot]]:
    """Return what is compared, with its name; those of one run."""
    threshold, tuned = read_threshold(run), searches["bi-encoder, tuned"]
    found = [
        ("retrieval alone: BM25, sentence", Bot(searches["BM25"], None, float("-inf"))),
        ("retrieval alone: tuned bi-encoder, sentence", Bot(tuned, None, threshold)),
    ]
    untuned = model_folder(asked.model or str(run / "small-model"))
    models = {"untuned": untuned, "SFT": run / "sft", "SFT + DPO": run / "dpo"}
    for name, folder in models.items():
        model = onecurve.load(folder, task="sft" if name == "untuned" else None)
        found.append((f"retrieval + {name} model", Bot(tuned, model, threshold, asked.passages, asked.max_new_tokens)))
    return found


def main(argv: list[str]) -> int:
    """Print the tables, and write every answer beside the first run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/support_chat")], help="one for each seed")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--documents", type=Path, default=HERE / "documents")
    parser.add_argument("--base_encoder", type=Path, default=Path("models/all-MiniLM-L6-v2"))
    parser.add_argument("--model", help="the untuned language model, a folder or a hub name; default: small-model/")
    parser.add_argument("--passages", type=int, default=2)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    asked = parser.parse_args(argv)
    try:
        measure(asked)
    except UserError as error:
        print(f"score_answers.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(asked: argparse.Namespace) -> None:
    """Score every run and print the tables as Markdown."""
    documents, rows = read_documents(asked.documents), read_test(asked.data / "questions-test.jsonl")
    known = [row for row in rows if row["facts"]]
    cache = asked.runs[0] / "index"
    searches: dict[str, Search] = {"BM25": Words(documents)}
    searches["bi-encoder, untuned"] = Encoder(asked.base_encoder, documents, cache)
    searches["bi-encoder, tuned"] = Encoder(asked.runs[0] / "embed", documents, cache)
    print(f"\n| {len(known)} questions, {len(documents)} passages | recall@1 | recall@3 | MRR |\n|---|--:|--:|--:|")
    for name, search in searches.items():
        ranks = [rank(search, row["question"], gold(row, documents)) for row in known]
        parts = [[float(one <= 1) for one in ranks], [float(one <= 3) for one in ranks], [1 / one for one in ranks]]
        print(f"| {name} | {' | '.join(map(_told, parts))} |")

    told: dict[str, list[list[float]]] = {}
    lines: list[dict[str, Any]] = []
    for run in asked.runs:
        of_run = searches | {"bi-encoder, tuned": Encoder(run / "embed", documents, run / "index")}
        for name, bot in bots(run, of_run, asked):
            answers = scored(bot, rows)
            told.setdefault(name, []).append([score for _, score in answers])
            lines += [
                {"run": str(run), "system": name, "question": row["question"], "answer": text, "score": score}
                for row, (text, score) in zip(rows, answers, strict=True)
            ]
    (asked.runs[0] / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    _print_answers(told, rows)
    _print_preferences(asked.runs)


def _print_answers(told: Mapping[str, list[list[float]]], rows: Sequence[Mapping[str, Any]]) -> None:
    kinds = {"all": [bool(row["facts"]) for row in rows]}
    kinds |= {name: [row.get("learnt") is value for row in rows] for name, value in (("learnt", True), ("new", False))}
    kinds["none"] = [not row["facts"] for row in rows]
    count = {name: sum(mask) for name, mask in kinds.items()}
    print(
        f"\n| fact recall, mean of {len(next(iter(told.values())))} run(s) | {count['all']} questions | "
        f"{count['learnt']} on learnt facts | {count['new']} on new facts | {count['none']} without answer: refused |"
        "\n|---|--:|--:|--:|--:|"
    )
    for name, runs in told.items():
        means = np.mean(runs, 0)
        cells = [_told(means[mask]) for mask in kinds.values()]
        each = ", ".join(f"{np.mean(np.asarray(run)[kinds['all']]):.3f}" for run in runs)
        print(f"| {name} | {' | '.join(cells)} |" + (f" <!-- each run: {each} -->" if len(runs) > 1 else ""))


def _print_preferences(runs: Sequence[Path]) -> None:
    print("\n| held-out pairs | chosen likelier before DPO | after | reward accuracy | margin |\n|---|--:|--:|--:|--:|")
    for run in runs:
        path = run / "dpo" / "predictions-test.jsonl"
        with open(path, encoding="utf-8") as file:
            pairs = [*map(json.loads, file)]
        task = read_yaml((run / "dpo" / "config.yaml").read_text(encoding="utf-8"))["task"]
        found = preferred(pairs, task["beta"])
        if task["loss_type"] in ("orpo", "simpo"):  # no model before that the rewards compare with
            found["before"] = float("nan")
        print(f"| {run}: {len(pairs)} | {' | '.join(f'{value:.3f}' for value in found.values())} |")


def _told(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{np.mean(values):.3f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
