"""Text ranking: rows of three forms, four losses, scores by query, and what is told of documents."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onecurve.config import TaskSection
from onecurve.data.rows import Columns
from onecurve.tasks import load_task
from onecurve.tasks.base import BadRow, Recognises, Survey
from onecurve.tasks.text_ranking import Task, _documents, _labels
from tests.tasks.contract import Case

QUERY = "where does the dog sleep?"
POINTS = [
    {"query": QUERY, "document": "in the sun", "label": 1},
    {"query": QUERY, "document": "the quick brown fox jumps", "label": 0},
    {"query": "what is it", "document": "there is no answer", "label": 0},
]
GRADES = [
    {"query": QUERY, "documents": ["the fox", "in the sun", "the lazy dog sleeps"], "labels": [0, 3, 1]},
    {"query": "what is it", "documents": ["there is no answer.", "the film"], "labels": [2, 0]},
    {
        "query": "who",
        "documents": ["the quick brown fox", "we were happy", "and", "def add(left, right)"],
        "labels": [2, 0, 1, 0],
    },
]
PAIRS = [
    {"query": QUERY, "positive": "in the sun", "negative": "the quick brown fox"},
    {"query": "what is it", "positive": "there is no answer", "negative": ["the film", "over the lazy dog"]},
    {"query": "who", "positive": "the fox", "negative": "the sun"},
]


def each_list(model: Any, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return (scores, labels) of each example, each of its texts computed by itself."""
    found = []
    for place, labels in enumerate(batch["labels"]):
        there = labels != -100
        scores = []
        for text in range(int(there.sum())):
            mask = batch["attention_mask"][place, text].bool()
            inputs = {name: batch[name][place, text][mask][None] for name in ("input_ids", "token_type_ids")}
            scores.append(model(**inputs).logits.view(()))
        found.append((torch.stack(scores), labels[there]))
    return found


def by_points(model: Any, batch: dict[str, Tensor], highest: float = 1.0) -> Tensor:
    scores, labels = (torch.cat(parts) for parts in zip(*each_list(model, batch), strict=True))
    shares = scores.sigmoid()
    return -((labels / highest) * shares.log() + (1 - labels / highest) * (1 - shares).log()).mean()


def by_pairs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    losses = [
        functional.binary_cross_entropy_with_logits(one - other, torch.tensor(1.0))
        for scores, labels in each_list(model, batch)
        for one, first in zip(scores, labels, strict=True)
        for other, second in zip(scores, labels, strict=True)
        if first > second
    ]
    return torch.stack(losses).mean()


def by_lists(model: Any, batch: dict[str, Tensor]) -> Tensor:
    of_lists = [functional.cross_entropy(scores, labels.softmax(0)) for scores, labels in each_list(model, batch)]
    return torch.stack(of_lists).mean()


def by_exchanges(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """LambdaRank by its definition: NDCG is computed again with two documents exchanged."""

    def dcg(order: list[float]) -> float:
        return sum((2**label - 1) / math.log2(place + 2) for place, label in enumerate(order))

    total = torch.tensor(0.0)
    for scores, labels in each_list(model, batch):
        order = scores.argsort(descending=True).tolist()
        ranked = [float(labels[number]) for number in order]
        best = dcg(sorted(ranked, reverse=True))
        for i, one in enumerate(order):
            for j, other in enumerate(order):
                if ranked[i] > ranked[j]:
                    exchanged = list(ranked)
                    exchanged[i], exchanged[j] = exchanged[j], exchanged[i]
                    weight = abs(dcg(ranked) - dcg(exchanged)) / best
                    total = total + weight * torch.log(1 + torch.exp(scores[other] - scores[one]))
    return total / len(batch["labels"])


CASES = {
    "text_ranking": Case(POINTS, model="tiny_bert", nats_per_item=math.log(2), oracle=by_points),
    "text_ranking_graded": Case(
        GRADES,
        {"max_label": 3},
        model="tiny_bert",
        nats_per_item=math.log(2),
        oracle=lambda model, batch: by_points(model, batch, 3.0),
    ),
    "text_ranking_pairs": Case(
        PAIRS, {"loss": "pairwise"}, model="tiny_bert", nats_per_item=math.log(2), oracle=by_pairs
    ),
    "text_ranking_lists": Case(
        GRADES, {"loss": "listwise"}, model="tiny_bert", nats_per_item=math.nan, oracle=by_lists
    ),
    "text_ranking_lambda": Case(
        GRADES, {"loss": "lambda"}, model="tiny_bert", nats_per_item=math.nan, oracle=by_exchanges
    ),
}


def _task(**settings: Any) -> Task:
    return load_task(TaskSection(name="text_ranking", **settings))


@pytest.mark.parametrize(
    ("settings", "row", "why"),
    [
        ({}, {"document": "a", "label": 1}, "query is missing"),
        ({}, {"query": "a", "label": 1}, "document and label, positive and negative"),
        ({}, {"query": "a", "document": "b"}, "label is missing"),
        ({}, {"query": "a", "document": "b", "positive": "c", "negative": "d"}, "this one has query, document"),
        ({}, {"query": "a", "document": "b", "label": 2}, "above task.max_label"),
        ({}, {"query": "a", "document": "b", "label": -1}, "must be 0 or more; got -1"),
        ({}, {"query": "a", "document": "b", "label": "good"}, "must be a finite number"),
        ({}, {"query": "a", "positive": "b"}, "negative is missing"),
        ({}, {"query": "a", "positive": "b", "negative": []}, "empty list"),
        ({}, {"query": "a", "documents": ["b", "c"], "labels": [1]}, "2 documents and 1 labels"),
        ({}, {"query": "a", "documents": "b", "labels": [1]}, "documents must be a list"),
        ({}, {"query": "a", "documents": ["b", ""], "labels": [1, 0]}, "a document is empty"),
        ({"loss": "pairwise"}, {"query": "a", "document": "b", "label": 1}, "compares the documents of a row"),
    ],
)
def test_a_bad_row_says_why(settings: dict[str, Any], row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        _task(**settings).check(row)


def test_documents_of_rows_with_one_query_are_ranked_together() -> None:
    pairs = [([0.2], [[0.0], 7]), ([1.5], [[1.0], 7]), ([0.9], [[0.0], 7]), ([3.0], [[0.0], 8])]
    scores = _task().metrics(pairs, 0.5, Survey())
    assert scores["mrr"] == scores["map"] == scores["ndcg@10"] == 1.0
    assert scores["queries"] == {"scored": 1, "without_relevant": 1}


def test_a_document_has_a_score_and_a_list_has_several() -> None:
    outputs = torch.tensor([[0.5, 0.0], [1.0, 2.0]])
    told = _task().answers(outputs, {}, [{"lengths": [3]}, {"lengths": [3, 4]}], Survey())
    assert told == [{"score": 0.5}, {"scores": [1.0, 2.0]}]


ST = "sentence-transformers "


FORMS: list[tuple[dict[str, Any], list[str], list[float], str]] = [
    ({"query": "a", "response": "b", "label": 1}, ["b"], [1.0], "(query, response, label)"),
    ({"query": "a", "answer": "b", "label": 0}, ["b"], [0.0], "(query, answer, label)"),
    ({"question": "a", "answer": "b", "score": 0.3}, ["b"], [0.3], "(question, answer, score)"),
    ({"sentence1": "a", "sentence2": "b", "label": 1}, ["b"], [1.0], "(sentence1, sentence2, label)"),
    ({"sentence1": "a", "sentence2": "b", "score": 0.5}, ["b"], [0.5], "(sentence1, sentence2, score)"),
    ({"anchor": "a", "positive": "b", "label": 0}, ["b"], [0.0], "(anchor, positive, label)"),
    ({"anchor": "a", "positive": "b", "negative": "c"}, ["b", "c"], [1.0, 0.0], "(anchor, positive, negative)"),
    (
        {"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d", "negative_3": None},
        ["b", "c", "d"],
        [1.0, 0.0, 0.0],
        "(anchor, positive, negative_1)",
    ),
    ({"question": "a", "answer": "b", "negative_1": "c"}, ["b", "c"], [1.0, 0.0], "(question, answer, negative_1)"),
    ({"query": "a", "answer": "b", "negative": "c"}, ["b", "c"], [1.0, 0.0], "(query, answer, negative)"),
    ({"query": "a", "docs": ["b", "c"], "labels": [1, 0]}, ["b", "c"], [1.0, 0.0], "(query, docs, labels)"),
    ({"query": "a", "docs": ["b", "c"], "scores": [0.9, 0.1]}, ["b", "c"], [0.9, 0.1], "(query, docs, scores)"),
    ({"query": "a", "answer": ["b", "c"], "labels": [1, 0]}, ["b", "c"], [1.0, 0.0], "(query, answer, labels)"),
    ({"query": "a", "positive": "b", "negative_1": "c"}, ["b", "c"], [1.0, 0.0], ""),  # a form of our own
    ({"query": "a", "document": "b", "label": 1}, ["b"], [1.0], ""),
]


@pytest.mark.parametrize(("record", "documents", "labels", "shape"), FORMS, ids=[" ".join(form[0]) for form in FORMS])
def test_columns_of_sentence_transformers_are_known(
    record: dict[str, Any], documents: list[str], labels: list[float], shape: str
) -> None:
    assert isinstance(_task(), Recognises)
    names = Columns.resolve({}, Task.columns, Task.shapes.values()).names_in(record)
    found = [
        name
        for name, known in Task.shapes.items()
        if {*names.items()} == {(c.rstrip("?"), f) for c, f in known.items()}
    ]
    assert found == ([ST + shape] if shape else [])
    row = {column: record[name] for column, name in names.items() if record.get(name) is not None}
    _task().check(row)
    assert (row["query"], _documents(row), _labels(row)) == ("a", documents, labels)
