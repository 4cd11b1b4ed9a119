"""Token classification: a tag for each word of a sentence, such as the kind of entity that it belongs to."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from onecurve.config import nearest
from onecurve.errors import DataError
from onecurve.losses.next_token import learnt
from onecurve.tasks import base
from onecurve.tasks._padding import pad, pad_text
from onecurve.tasks.base import IGNORE_INDEX, Answer, BadRow, Batch, Example, Processing, Row, Settings, Survey

if TYPE_CHECKING:
    from torch import Tensor, nn

_OUTSIDE = "O"
_NO_WORD = -1


class TokenClassificationSettings(Settings):
    labels: list[str] | None = None
    """Every tag in the order of the ids. Absent: those of the training split, O first, then by type and prefix."""

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> "TokenClassificationSettings":
        if self.labels is not None and (len(set(self.labels)) < len(self.labels) or len(self.labels) < 2):
            raise ValueError(f"labels must name at least two different tags; got {self.labels}")
        return self


class Task(base.Task):
    """Tag the words of a sentence.

    The tag of a word is learnt at the first of its tokens; the others take no part in the loss, as in Devlin et al.,
    BERT, 2019, section 5.3. A word of which the tokenizer leaves nothing, and one that is cut off, are scored as
    outside any entity: nothing is left out of a score.
    """

    Settings: ClassVar[type[Settings]] = TokenClassificationSettings
    columns: ClassVar[Mapping[str, str]] = {
        "tokens": "a list of words (in CSV: as JSON, or separated by spaces)",
        "tags": "a list of tags, one for each word",
    }
    sample: ClassVar[Sequence[Row]] = (
        {"tokens": ["Anna", "Bauer", "flew", "to", "Oslo"], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC"]},
        {"tokens": ["prices", "rose", "in", "Upper", "Vale"], "tags": ["O", "O", "O", "B-LOC", "I-LOC"]},
        {"tokens": ["Hugo", "thanked", "Elena", "Petrov"], "tags": ["B-PER", "O", "B-PER", "I-PER"]},
        {"tokens": ["Elena", "left", "Oslo"], "tags": ["B-PER", "O", "B-LOC"]},
        {"tokens": ["rain", "fell", "on", "Lisbon"], "tags": ["O", "O", "O", "B-LOC"]},
        {"tokens": ["Oslo", "welcomed", "Anna", "Bauer"], "tags": ["B-LOC", "O", "B-PER", "I-PER"]},
    )
    targets: ClassVar[frozenset[str]] = frozenset({"tags"})
    peft_task_type: ClassVar[str | None] = "TOKEN_CLS"
    metric_names: Sequence[str] = ("loss", "accuracy", "precision", "recall", "f1")

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return base.NO_TEXT_OUT

    def read_text(self, text: str) -> Row:
        return {"tokens": text.split()}

    def check_input(self, row: Row) -> None:
        _words(row)

    def check(self, row: Row) -> None:
        words, tags = _words(row), _tags(row)
        if len(words) != len(tags):
            raise BadRow(f"has {len(words)} tokens and {len(tags)} tags")
        self._check_known(tags, self.settings.labels, "is not in task.labels")

    def row_labels(self, row: Row) -> Sequence[str]:
        return _tags(row)

    def check_label(self, row: Row, survey: Survey) -> None:
        self._check_known(_tags(row), survey.labels, "was never seen in training")

    def _check_known(self, tags: list[str], known: list[str] | None, what: str) -> None:
        for tag in tags:
            if known is not None and tag not in known:
                raise BadRow(f"tag {tag!r} {what}. {nearest(tag, known)}")

    def survey(self, rows: Iterable[Row]) -> Survey:
        if self.settings.labels is not None:
            return Survey(self.settings.labels, "recipe")
        counts = Counter(tag for row in rows for tag in _tags(row))
        names = sorted(counts, key=_by_type)
        if len(names) < 2:
            raise DataError(
                f"token_classification needs at least two different tags; the training split has {names}.",
                where="data.train",
                fix="Check data.columns (is `tags` the right column?) or set task.labels.",
            )
        return Survey(names, label_counts=[counts[name] for name in names])

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        words = _words(row)
        limit = {"truncation": True, "max_length": reading.max_length} if truncate else {"truncation": False}
        # As a text, which every tokenizer reads as in pre-training; a list of words is read as one by some
        encoded = reading.tokenizer(" ".join(words), return_offsets_mapping=True, verbose=False, **limit)
        places = _first_tokens(words, encoded["offset_mapping"])
        example: Example = {"input_ids": encoded["input_ids"], "words": places, "num_items": 0}
        if row.get("tags") is None:
            return [example | {"tokens": words}]
        tags = [survey.labels.index(tag) for tag in _tags(row)]
        labels = [IGNORE_INDEX if word == _NO_WORD else tags[word] for word in places]
        num_items = sum(label != IGNORE_INDEX for label in labels)
        return [example | {"labels": labels, "tags": tags, "num_items": num_items}] if num_items else []

    def auto_model(self) -> type:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def model_config(self, survey: Survey) -> dict[str, Any]:
        return {
            "num_labels": len(survey.labels),
            "id2label": dict(enumerate(survey.labels)),
            "label2id": {name: index for index, name in enumerate(survey.labels)},
        }

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        batch = pad_text(examples, reading.tokenizer.pad_token_id)
        batch["words"] = pad([e["words"] for e in examples], _NO_WORD)
        if all("labels" in e for e in examples):
            width = batch["input_ids"].shape[1]  # of several heads' rows, the longest may have no tags
            batch["labels"] = pad([e["labels"] for e in examples], IGNORE_INDEX, width=width)
            batch["tags"] = pad([e["tags"] for e in examples], IGNORE_INDEX)
        return batch

    def num_items(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        from torch.nn import functional

        logits, labels = outputs.float().flatten(0, 1), batch["labels"].flatten()
        return functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")

    @property
    def classes(self) -> Literal["label"]:
        return "label"

    def classified(self, outputs: "Tensor", batch: Batch) -> "tuple[Tensor, Tensor]":
        places, targets = learnt(batch["labels"], IGNORE_INDEX)
        return outputs.flatten(0, 1).index_select(0, places).float(), targets

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[list[int], list[int]]]:
        references = [[tag for tag in row if tag != IGNORE_INDEX] for row in batch["tags"].tolist()]
        found = zip(_of_words(outputs, batch), references, strict=True)
        return [([tags.get(word, _NO_WORD) for word in range(len(right))], right) for tags, right in found]

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        from onecurve.metrics.entities import score_tags

        return {"loss": loss, **score_tags(pairs, survey.labels)}

    def answers(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        told = []
        for tags, example in zip(_of_words(outputs, batch), examples, strict=True):
            words = example.get("tokens")  # a labelled example keeps only its tags
            count = len(example["tags"] if words is None else words)
            names = [survey.labels[tags[word]] if word in tags else _OUTSIDE for word in range(count)]
            told.append(_answer(names, words, survey.labels))
        return told

    def vote(self, outputs: Any, batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        """Return the words, and for each that was read its tags' probabilities."""
        told = []
        rows = zip(outputs.float().softmax(-1).tolist(), batch["words"].tolist(), examples, strict=True)
        for shares, places, example in rows:
            read = {word: share for word, share in zip(places, shares, strict=True) if word != _NO_WORD}
            of_tags = {word: dict(zip(survey.labels, share, strict=True)) for word, share in read.items()}
            told.append({"words": example["tokens"], "labels": survey.labels, "probabilities": of_tags})
        return told

    def elect(self, votes: Sequence[Answer]) -> Answer:
        """Return each word's tag by the mean of those models that have read it: some may read longer rows."""
        words, labels, names = votes[0]["words"], votes[0]["labels"], []
        for word in range(len(words)):
            read = [vote["probabilities"][word] for vote in votes if word in vote["probabilities"]]
            total = {label: sum(one[label] for one in read) for label in labels}
            names.append(max(labels, key=total.__getitem__) if read else _OUTSIDE)
        return _answer(names, words, labels)

    def reference(self, example: Example, survey: Survey) -> Answer:
        return {"reference": [survey.labels[tag] for tag in example["tags"]]}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        tokens = tokenizer.convert_ids_to_tokens(example["input_ids"])
        marked = zip(tokens, example["labels"], strict=True)
        return " ".join(token + ("" if tag == IGNORE_INDEX else f"«{survey.labels[tag]}»") for token, tag in marked)


def _answer(names: list[str], words: Sequence[str] | None, labels: Sequence[str]) -> Answer:
    """Return what is told of a sentence with these tags: with a scheme of entities, those too."""
    from onecurve.metrics.entities import entities, has_entities

    if not has_entities(labels):
        return {"tags": names}
    spans: list[Answer] = []
    for kind, start, end in entities(names):
        text = {} if words is None else {"text": " ".join(words[start:end])}
        spans.append({"type": kind, "start": start, "end": end, **text})
    return {"tags": names, "entities": spans}


def _words(row: Row) -> list[str]:
    words = _list(row, "tokens")
    if not words:
        raise BadRow("tokens is empty")
    for place, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise BadRow(f"tokens[{place}] must be non-empty text; got {short(word)}")
    return words


def _tags(row: Row) -> list[str]:
    names = (tag if isinstance(tag, str | int) and not isinstance(tag, bool) else "" for tag in _list(row, "tags"))
    tags = [str(name).strip() for name in names]
    if "" in tags:
        raise BadRow(f"tags[{tags.index('')}] must be the name of a tag, or its number")
    return tags


def _list(row: Row, column: str) -> list[Any]:
    value = row.get(column)
    if value is None:
        raise BadRow(f"{column} is missing")
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.split()
        except ValueError as error:
            raise BadRow(f"{column} is text but not a JSON list: {error}") from None
    if not isinstance(value, list | tuple):
        raise BadRow(f"{column} must be a list; got {short(value)} ({type(value).__name__})")
    return list(value)


def _by_type(tag: str) -> tuple[bool, str, str]:
    prefix, _, kind = tag.partition("-")
    return tag != _OUTSIDE, kind or prefix, prefix


def _first_tokens(words: list[str], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return, for each token, the number of the word that it is the first token of, else _NO_WORD.

    Args:
        words: Joined by spaces.
        spans: Where in that text each token stands; a special token has no width.
    """
    starts = list(accumulate((len(word) + 1 for word in words), initial=0))
    places, last = [], _NO_WORD
    for left, right in spans:
        word = bisect_right(starts, left) - 1
        if left < right and left >= starts[word] + len(words[word]):  # it begins with the space before a word
            word += 1
        is_first = left < right and word > last and word < len(words) and right > starts[word]
        places.append(word if is_first else _NO_WORD)
        last = word if is_first else last
    return places


def _of_words(outputs: "Tensor", batch: Batch) -> list[dict[int, int]]:
    """Return, for each example, the id of the tag that each of its words is given."""
    rows = zip(outputs.argmax(-1).tolist(), batch["words"].tolist(), strict=True)
    return [{word: tag for tag, word in zip(*row, strict=True) if word != _NO_WORD} for row in rows]
