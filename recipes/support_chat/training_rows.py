"""Writes what the recipes train on, from documents, questions and preferences.

    python recipes/support_chat/training_rows.py pairs         # a question and its passage, for embed.yaml
    python recipes/support_chat/training_rows.py rows          # conversations with passages, for sft.yaml and dpo.yaml

`rows` searches with the encoder that embed.yaml has trained, and chooses the threshold of answer.py.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from answer import SETTINGS
from passages import Passage, read_documents
from prompt import messages
from retrieval import Encoder, Search, top

from onecurve.errors import DataError, UserError

HERE = Path(__file__).parent


def read_questions(path: Path, *needed: str) -> list[dict[str, Any]]:
    """Return a file's rows: JSON lines.

    Args:
        path: The file.
        *needed: Keys that each row must have beside its question.

    Raises:
        DataError: No such file, or a line that is not a JSON object with what is needed.
    """
    if not path.is_file():
        raise DataError(f"there is no {str(path)!r}.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise DataError(f"broken JSON: {error}.", where=f"{path}, line {number}") from None
        if row is not None and not isinstance(row, dict):
            raise DataError("must be a JSON object.", where=f"{path}, line {number}")
        if missing := [key for key in ("question", *needed) if row is not None and row.get(key) in (None, "")]:
            raise DataError(f"has no {missing[0]!r}.", where=f"{path}, line {number}")
        rows += [row] if row is not None else []
    return rows


def gold(row: Mapping[str, Any], passages: Sequence[Passage]) -> Passage | None:
    """Return the passage that a row's answer stands in; None where the documents do not hold it.

    A row names the document and its section; without a section the document must be one passage. Of a section in
    several parts it is the one that shares the most words with the answer; without one, that holds the most facts.

    Raises:
        DataError: There is no such passage, or the document has several and no section is named.
    """
    if row.get("document") is None:
        return None
    found = [one for one in passages if one.document == row["document"]]
    if row.get("section"):
        found = [one for one in found if one.section == row["section"]]
    name = " # ".join(str(row[key]) for key in ("document", "section") if row.get(key))
    if not found:
        raise DataError(f"{row['question']!r} names {name!r}, which is not in the documents.")
    if len({one.section for one in found}) > 1:
        raise DataError(
            f"{row['question']!r} names {name!r}, which has several sections.", fix="Name one in `section`."
        )
    if words := set(str(row.get("answer") or row.get("chosen") or "").lower().split()):
        return max(found, key=lambda one: len(words & set(one.text.lower().split())))
    return max(found, key=lambda one: sum(holds(one.text, fact) for fact in row.get("facts") or []))


def holds(text: str, fact: Sequence[str]) -> bool:
    """Whether a text has one of a fact's spellings: in any case, as whole words and numbers ("5" is not in "1.5")."""
    text = " ".join(text.lower().split())
    return any(
        re.search(rf"(?<!\w)(?<!\d[.:]){re.escape(spelling.lower())}(?!\w)(?![.:]\d)", text) for spelling in fact
    )


def context(row: Mapping[str, Any], search: Search, count: int) -> list[Passage]:
    """Return the passages that training shows beside a question: those found, and among them that of the answer.

    Where the search misses it, it takes the place of the last one found.
    """
    found = [one.passage for one in top(search, row["question"], count)]
    wanted = gold(row, search.passages)
    return found if wanted is None or wanted in found else [*found[:-1], wanted]


def choose_threshold(scores: Sequence[tuple[float, bool]]) -> float:
    """Return the score that best tells questions with an answer from those without, each kind counting half.

    It lies halfway between two scores. Of equally good places the lowest is taken: it refuses fewer questions.

    Args:
        scores: Of the best passage of each question, and whether the documents hold its answer; both kinds.

    Raises:
        DataError: One kind is missing.
    """
    known, unknown = ([score for score, is_known in scores if is_known is kind] for kind in (True, False))
    if not known or not unknown:
        raise DataError("the dev questions need some with an answer and some without (`document`: null).")
    ordered = sorted({score for score, _ in scores})
    places = [ordered[0] - 0.01, *((one + two) / 2 for one, two in pairwise(ordered))]

    def balanced(place: float) -> float:
        return sum(one >= place for one in known) / len(known) + sum(one < place for one in unknown) / len(unknown)

    return max(places, key=lambda place: (balanced(place), -place))


def write_pairs(data: Path, documents: list[Passage], run: Path) -> None:
    """Write the questions with the passage that answers each."""
    for split in ("train", "dev"):
        rows = [(row["question"], gold(row, documents)) for row in read_questions(data / f"questions-{split}.jsonl")]
        _write(
            run / "rows" / f"embed-{split}.jsonl",
            ({"query": query, "positive": passage.whole} for query, passage in rows if passage),
        )


def write_rows(data: Path, search: Search, run: Path, count: int) -> None:
    """Write questions and preferences with their passages, and the threshold."""
    for split in ("train", "dev"):
        _write(
            run / "rows" / f"sft-{split}.jsonl",
            (
                {"prompt": messages(row["question"], context(row, search, count)), "response": row["answer"]}
                for row in read_questions(data / f"questions-{split}.jsonl", "answer")
            ),
        )
    for split in ("train", "test"):
        _write(
            run / "rows" / f"dpo-{split}.jsonl",
            (
                {
                    "prompt": messages(row["question"], context(row, search, count)),
                    "chosen": row["chosen"],
                    "rejected": row["rejected"],
                }
                for row in read_questions(data / f"preferences-{split}.jsonl", "chosen", "rejected")
            ),
        )
    rows = read_questions(data / "questions-dev.jsonl")
    scores = [(top(search, row["question"], 1)[0].score, row.get("document") is not None) for row in rows]
    threshold = choose_threshold(scores)
    (run / SETTINGS).write_text(json.dumps({"threshold": threshold}) + "\n", encoding="utf-8")
    kept = sum(score >= threshold for score, is_known in scores if is_known)
    refused = sum(score < threshold for score, is_known in scores if not is_known)
    total = sum(is_known for _, is_known in scores)
    print(
        f"threshold {threshold:.3f}: of the dev questions {kept} of {total} with an answer are answered, "
        f"{refused} of {len(scores) - total} without one refused"
    )


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines):>5} rows  {path}")


def main(argv: list[str]) -> int:
    """Write the rows of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["pairs", "rows"])
    parser.add_argument("--run", type=Path, default=Path("runs/support_chat"), help="where they are written")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="the folder of questions and preferences")
    parser.add_argument("--documents", type=Path, default=HERE / "documents")
    parser.add_argument("--encoder", type=Path, help="default: embed/ of the run")
    parser.add_argument("--passages", type=int, default=2, help="how many stand beside a question")
    asked = parser.parse_args(argv)
    try:
        documents = read_documents(asked.documents)
        if asked.step == "pairs":
            write_pairs(asked.data, documents, asked.run)
        else:
            search = Encoder(asked.encoder or asked.run / "embed", documents, asked.run / "index")
            write_rows(asked.data, search, asked.run, asked.passages)
    except UserError as error:
        print(f"training_rows.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
