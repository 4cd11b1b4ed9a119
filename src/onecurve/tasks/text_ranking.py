"""Text ranking: a score for a query and a document that the model reads together (a cross-encoder)."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from onecurve.content.labels import read_number
from onecurve.losses import lists
from onecurve.metrics import ranking
from onecurve.tasks._embedding_rows import MORE, RANKING_SHAPES, negatives
from onecurve.tasks._sequences import SequencesTask, by_example, each_sequence, put_back, sequences
from onecurve.tasks.base import (
    IGNORE_INDEX,
    Answer,
    BadRow,
    Batch,
    Example,
    Processing,
    Row,
    Settings,
    Survey,
    check_text,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

_LOSSES = {
    "pointwise": lists.pointwise_sum,
    "pairwise": lists.pairwise_sum,
    "listwise": lists.listwise_sum,
    "lambda": lists.lambda_sum,
}
_FORMS = "document and label, positive and negative, or documents and labels"


class TextRankingSettings(Settings):
    loss: Literal["pointwise", "pairwise", "listwise", "lambda"] = "pointwise"
    """What is compared. pointwise: each document with its label (binary cross-entropy). pairwise: two documents of a
    row, of which one has the higher label (RankNet). listwise: all documents of a row (ListNet). lambda: pairs, by what
    exchanging the two changes of NDCG (LambdaLoss)."""
    max_label: float = Field(default=1.0, gt=0)
    """The highest label, by which pointwise divides: 3 for labels from 0 to 3."""
    cutoff: int = Field(default=10, gt=0)
    """How many documents from the top count for NDCG."""


class Task(SequencesTask):
    """Score how well documents answer a query, so that they can be put in order.

    A row has one document with its label (binary or graded, from 0 up), a positive and one or several negatives, or a
    list of documents and a list of labels. The documents of a row are one example, so a loss over a list does not
    depend on how batches are cut. Metrics are over the documents of each query, those of all rows with that query
    together; relevant is a label above 0, and queries without a relevant document are counted and not scored.
    """

    Settings: ClassVar[type[Settings]] = TextRankingSettings
    columns: ClassVar[Mapping[str, str]] = {
        "query": "text to search with",
        "document?": "a text that is scored",
        "label?": "its label: a number, 0 for irrelevant",
        "positive?": "a relevant text",
        "negative?": "an irrelevant text, or a list of them",
        **{f"{name}?": "a further irrelevant text" for name in MORE},
        "documents?": "a list of texts",
        "labels?": "a list with the label of each",
    }
    shapes: ClassVar[Mapping[str, Mapping[str, str]]] = RANKING_SHAPES
    reworded: ClassVar[Sequence[str]] = ("query", "document", "positive", "negative", *MORE, "documents")
    targets: ClassVar[frozenset[str]] = frozenset({"label", "labels"})
    sample: ClassVar[Sequence[Row]] = tuple(
        {"query": query, "documents": [answer, other], "labels": [1, 0]}
        for query, answer, other in [
            ("When does the last boat leave?", "The last departure is at ten.", "Dogs travel free of charge."),
            ("May dogs come aboard?", "Dogs travel free of charge.", "Tickets are sold on the quay."),
            ("Where do I buy a ticket?", "Tickets are sold on the quay.", "The last departure is at ten."),
            ("Is there food on board?", "The upper deck has a café.", "Bicycles cost two euros."),
            ("Can I take my bicycle?", "Bicycles cost two euros.", "The upper deck has a café."),
        ]
    )
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    is_guessed: ClassVar[bool] = False
    scoring_settings: ClassVar[frozenset[str]] = frozenset({"cutoff"})

    def __init__(self, settings: TextRankingSettings) -> None:
        super().__init__(settings)
        self.metric_names: Sequence[str] = ("loss", *ranking.names(settings.cutoff, searches=False))

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        told = dict(super().without_effect(reading))
        if self.settings.loss != "pointwise":
            told["task.max_label"] = "only task.loss pointwise divides by it"
        return told

    # Rows

    def check_input(self, row: Row) -> None:
        check_text(row.get("query"), "query")
        _check_form(row)
        for document in _documents(row):
            check_text(document, "a document")

    def check(self, row: Row) -> None:
        self.check_input(row)
        labels = _labels(row)
        if not labels:
            raise BadRow(f"{'labels are' if 'documents' in row else 'label is'} missing")
        if len(labels) != len(_documents(row)):
            raise BadRow(f"there are {len(_documents(row))} documents and {len(labels)} labels")
        if min(labels) < 0:
            raise BadRow(f"a label must be 0 or more; got {min(labels):g}")
        if self.settings.loss == "pointwise" and max(labels) > self.settings.max_label:
            highest = f"{max(labels):g}"
            raise BadRow(f"the label {highest} is above task.max_label; set that to the highest label there is")
        if self.settings.loss != "pointwise" and len(labels) < 2:
            raise BadRow(f"task.loss {self.settings.loss} compares the documents of a row, and this row has only one")

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        example = self.tokenized([(row["query"], document) for document in _documents(row)], reading, truncate)
        example["query"] = blake2b(row["query"].encode(), digest_size=7).hexdigest()
        labels = _labels(row)
        if not labels:
            return [{**example, "num_items": 0}]
        return [{**example, "labels": labels, "num_items": self._count(labels)}]

    def _count(self, labels: Sequence[float]) -> int:
        if self.settings.loss == "pairwise":
            return sum(one > other for one in labels for other in labels)
        return len(labels) if self.settings.loss == "pointwise" else 1

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        """Pad the documents, and their labels: float32 [examples, documents]; `queries` numbers the queries' texts."""
        import torch

        queries = torch.tensor([int(example["query"], 16) for example in examples])
        batch = super().collate(examples, reading) | {"queries": queries}
        if not all("labels" in example for example in examples):
            return batch
        counts = [len(example["labels"]) for example in examples]
        labels = torch.tensor([label for example in examples for label in example["labels"]], dtype=torch.float32)
        there = by_example(torch.ones(len(labels), dtype=torch.bool), counts)
        return batch | {"labels": by_example(labels, counts).where(there, float(IGNORE_INDEX))}

    # The model

    def auto_model(self) -> type:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_config(self, survey: Survey) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}  # so that pipelines give scores as they are

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        """Return the score of each document: [examples, documents]."""
        inputs, places, shape = each_sequence(batch)
        return put_back(model(**inputs).logits[:, 0], places, shape)

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        labels, there = batch["labels"], batch["labels"] != IGNORE_INDEX
        if self.settings.loss == "pointwise":
            labels = labels / self.settings.max_label
        return _LOSSES[self.settings.loss](outputs.float(), labels, there)

    def num_items(self, batch: Batch) -> int:
        labels, there = batch["labels"], batch["labels"] != IGNORE_INDEX
        if self.settings.loss == "pairwise":
            return int(lists.ordered(labels, there).sum())
        return int(there.sum()) if self.settings.loss == "pointwise" else len(labels)

    # Scores

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[list[float], Any]]:
        """Return (scores, [labels, the query's number]) per example."""
        rows = zip(outputs.tolist(), batch["labels"].tolist(), batch["queries"].tolist(), strict=True)
        found = []
        for scores, labels, query in rows:
            count = len(labels) - labels.count(IGNORE_INDEX)
            found.append((scores[:count], [labels[:count], query]))
        return found

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        """Score the order of each query's documents."""
        of_queries: dict[int, list[tuple[float, float]]] = {}
        for scores, (labels, query) in pairs:
            of_queries.setdefault(query, []).extend(zip(scores, labels, strict=True))
        return {"loss": loss, **ranking.score_reranking(of_queries, self.settings.cutoff)}

    def answers(self, outputs: "Tensor", batch: Batch, examples: Sequence[Example], survey: Survey) -> list[Answer]:
        """Return the `score` of a document, before any sigmoid; of a list of documents their `scores`."""
        rows = zip(outputs.tolist(), examples, strict=True)
        found = [row[: len(example["lengths"])] for row, example in rows]
        return [{"score": scores[0]} if len(scores) == 1 else {"scores": scores} for scores in found]

    def reference(self, example: Example, survey: Survey) -> Answer:
        labels = example["labels"]
        return {"reference": labels[0] if len(labels) == 1 else labels}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        texts = [tokenizer.decode(one["input_ids"], clean_up_tokenization_spaces=False) for one in sequences(example)]
        return ", ".join(f"{text} -> «{label:g}»" for text, label in zip(texts, example["labels"], strict=True))


def _check_form(row: Row) -> None:
    own = (("document",), ("positive", "negative", *MORE), ("documents",))
    forms = [any(name in row for name in names) for names in own]
    if sum(forms) != 1:
        raise BadRow(f"a row has {_FORMS}; this one has {', '.join(row)}")
    if forms[1] and "positive" not in row:
        raise BadRow("positive is missing")
    if forms[1] and not negatives(row):
        raise BadRow("negative is an empty list" if "negative" in row else "negative is missing")
    if forms[2] and not (isinstance(row["documents"], list) and row["documents"]):
        raise BadRow("documents must be a list of texts that is not empty")


def _documents(row: Row) -> list[Any]:
    if "positive" in row:
        return [row["positive"], *negatives(row)]
    return row["documents"] if "documents" in row else [row["document"]]


def _labels(row: Row) -> list[float]:
    """Return the label of each document; none where the row, to be predicted, has none."""
    if "positive" in row:
        return [1.0, *[0.0] * (len(_documents(row)) - 1)]
    labels = row.get("labels") if "documents" in row else row.get("label")
    if labels is None:
        return []
    if "documents" in row and not isinstance(labels, list):
        raise BadRow("labels must be a list of numbers")
    return [read_number(label) for label in (labels if isinstance(labels, list) else [labels])]
