"""A tokenizer of one token a byte, a task that counts its calls, and data files to load with them."""

import json
import traceback
from pathlib import Path
from typing import Any

from onecurve.config import DataSection
from onecurve.data.encoding import load_data
from onecurve.data.splits import Data
from onecurve.tasks.base import Example, Processing, Row, Survey
from onecurve.tasks.text_classification import Task as TextClassification
from onecurve.tasks.text_classification import TextClassificationSettings
from tests.readings import ReadingOf


def byte_tokenizer(**settings: Any) -> Any:
    """Build it in memory; what it reads is as long as its bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"eos_token": "<end>", "pad_token": "<end>", **settings}
    )


def is_for_a_split() -> bool:
    """Whether the row that is encoded just now is to be kept: a few are at every start, only to be compared."""
    return any(frame.name == "encode_part" for frame in traceback.extract_stack())


class LoggedTask(TextClassification):
    """Text classification that writes one line a row that it encodes for a split, whichever process does it."""

    def __init__(self, log: Path, settings: TextClassificationSettings | None = None) -> None:
        super().__init__(settings or TextClassificationSettings())
        self.log = log

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        if is_for_a_split():
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(row["text"] + "\n")
        return super().encode(row, survey, reading, truncate)

    def written(self) -> list[str]:
        """The texts encoded so far."""
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


def write_jsonl(path: Path, rows: list[Any]) -> str:
    """Write one line a row; a string is written as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def labelled(*texts: str) -> list[Row]:
    """Rows with alternating labels."""
    return [{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(texts)]


def load(settings: DataSection, task: Any, tokenizer: Any = None, max_length: int = 100, seed: int = 0) -> Data:
    """Load with the byte tokenizer unless another is given."""
    return load_data(settings, task, ReadingOf(lambda: tokenizer or byte_tokenizer(), max_length), seed)
