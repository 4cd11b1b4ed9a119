"""Answers questions from a folder of documents, and names the passages it took the answer from.

python recipes/support_chat/answer.py "How do I reset the router?"
python recipes/support_chat/answer.py                                 # a conversation
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from passages import read_documents
from prompt import NOT_FOUND, Turn, messages
from retrieval import Encoder, Found, Search, best_sentence, top

import onecurve
from onecurve.errors import ConfigError, UserError

HERE = Path(__file__).parent
SETTINGS = "threshold.json"


@dataclass
class Answer:
    """What is said, and what it was said from: nothing where no passage fits."""

    text: str
    found: list[Found]


@dataclass
class Bot:
    """Answers questions one after another."""

    search: Search
    model: Any
    """Of `onecurve.load`; None: the best sentence of the best passage is the answer."""
    threshold: float
    """Where no passage scores as high, the documents do not hold the answer."""
    passages: int = 2
    max_new_tokens: int = 96
    history: list[Turn] = field(default_factory=list)

    def find(self, question: str) -> list[Found]:
        """Return the best passages; none below the threshold.

        A question that finds nothing by itself ("And how long does that take?") is searched with the one before it.
        """
        found = top(self.search, question, self.passages)
        if self.history and found[0].score < self.threshold:
            found = top(self.search, f"{self.history[-1][0]} {question}", self.passages)
        return found if found[0].score >= self.threshold else []

    def ask(self, question: str) -> Answer:
        """Answer a question of the conversation, which the next one can refer to.

        Raises:
            ConfigError: The conversation is longer than the model reads.
        """
        answer = self.answer_all([question])[0]
        self.history.append((question, answer.text))
        return answer

    def answer_all(self, questions: Sequence[str]) -> list[Answer]:
        """Answer each of several questions as the next one of this conversation; none is kept."""
        found = [self.find(question) for question in questions]
        asked = [place for place, passages in enumerate(found) if passages]
        if self.model is None:
            said = {place: best_sentence(self.search, questions[place], found[place][0].passage) for place in asked}
        else:
            said = dict(zip(asked, self._write([(questions[place], found[place]) for place in asked]), strict=True))
        return [Answer(said.get(place, NOT_FOUND), passages) for place, passages in enumerate(found)]

    def _write(self, asked: Sequence[tuple[str, list[Found]]]) -> list[str]:
        rows = [
            {"prompt": messages(question, [one.passage for one in found], self.history)} for question, found in asked
        ]
        answers = self.model.predict(rows, max_new_tokens=self.max_new_tokens)
        for (question, _), answer in zip(asked, answers, strict=True):
            if "error" in answer:
                raise ConfigError(f"{question!r} {answer['error']}.", fix="Ask with fewer --passages, or /reset.")
        return [answer["text"].strip() for answer in answers]


def read_threshold(run: Path) -> float:
    """Return the score that training_rows.py chose by the dev questions."""
    path = run / SETTINGS
    if not path.is_file():
        raise ConfigError(
            f"there is no {str(path)!r}.", fix="Run the steps of the Makefile first, or give --threshold."
        )
    threshold: float = json.loads(path.read_text(encoding="utf-8"))["threshold"]
    return threshold


def shown(answer: Answer) -> str:
    """Return an answer and its sources as lines for a terminal."""
    lines = [answer.text]
    for number, (passage, score) in enumerate(answer.found, 1):
        section = f" # {passage.section}" if passage.section else ""
        lines.append(f"  [{number}] {passage.document}{section}  {score:.3f}")
    return "\n".join(lines)


def converse(bot: Bot, lines: Any) -> int:
    """Answer each line; return 1 where one could not be answered."""
    failed = 0
    for line in map(str.strip, lines):
        if line == "/exit":
            break
        if line == "/reset":
            bot.history.clear()
        elif line:
            try:
                print(shown(bot.ask(line)), flush=True)
            except ConfigError as error:
                failed += 1
                print(f"answer.py: {error}", file=sys.stderr)
    return int(failed > 0)


def main(argv: list[str]) -> int:
    """Answer the questions of the command line, or those of standard input as one conversation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="default: standard input, a question a line")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/support_chat"), help="the folder of the Makefile's steps"
    )
    parser.add_argument("--documents", type=Path, default=HERE / "documents")
    parser.add_argument("--encoder", type=Path, help="default: embed/ of the run")
    parser.add_argument("--model", type=Path, help="the language model; default: dpo/ of the run")
    parser.add_argument(
        "--sentence", action="store_true", help="answer with a sentence of the documents, no language model"
    )
    parser.add_argument("--passages", type=int, default=2, help="how many the language model reads")
    parser.add_argument("--threshold", type=float, help="default: what training_rows.py chose")
    parser.add_argument("--max_new_tokens", type=int, default=96)
    asked = parser.parse_args(argv)
    try:
        if asked.passages < 1:
            raise ConfigError(f"must be at least 1; got {asked.passages}.", where="--passages")
        threshold = read_threshold(asked.run) if asked.threshold is None else asked.threshold
        documents = read_documents(asked.documents)
        search = Encoder(asked.encoder or asked.run / "embed", documents, asked.run / "index")
        model = None if asked.sentence else onecurve.load(asked.model or asked.run / "dpo", task=None)
        bot = Bot(search, model, threshold, asked.passages, asked.max_new_tokens)
        if not asked.questions:
            if sys.stdin.isatty():
                print("A question a line; /reset begins anew, /exit ends.", file=sys.stderr)
            return converse(bot, sys.stdin)
        for answer in bot.answer_all(asked.questions):
            print(shown(answer))
    except UserError as error:
        print(f"answer.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
