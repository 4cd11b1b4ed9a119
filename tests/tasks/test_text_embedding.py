"""Text embedding: the loss over the global batch, its examples, scores and what is told of a text."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from onecurve.config import TaskSection
from onecurve.data.rows import Columns
from onecurve.errors import ConfigError
from onecurve.step import accumulate
from onecurve.tasks import load_task
from onecurve.tasks._embedding_rows import negatives
from onecurve.tasks.base import BadRow, Pools, Survey
from onecurve.tasks.text_embedding import Task
from tests.tasks.contract import Case, check_another_cut_has_the_same_gradient, prepare

ROWS = [
    {"query": "where does the dog sleep?", "positive": "the dog sleeps in the sun", "negative": "a lazy dog"},
    {
        "query": "what is there?",
        "positive": "there is no answer.",
        "negative": ["the fox", "we were happy with the film"],
    },
    {"query": "who jumps", "positive": "the quick brown fox jumps over the lazy dog"},
    {"query": "add", "positive": "def add(left, right): return left + right", "negative": "and they were not."},
    {"query": "were we happy?", "positive": "we were happy, and they were not."},
]


def whole_batch_loss(model: Any, batch: dict[str, Tensor], temperature: float = 0.05) -> Tensor:
    """Multiple negatives ranking loss as sentence-transformers defines it: cross-entropy over scale * cosine."""

    def embed(place: int) -> tuple[Tensor, Tensor]:
        mask = batch["attention_mask"][:, place]
        there = mask.any(1)
        hidden = model(input_ids=batch["input_ids"][there, place], attention_mask=mask[there]).last_hidden_state
        weights = mask[there][..., None].float()
        return functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1), there

    columns = batch["input_ids"].shape[1]
    queries, positives = embed(0)[0], embed(1)[0]
    documents = torch.cat([positives, *(embed(place)[0] for place in range(2, columns))])
    return functional.cross_entropy(queries @ documents.T / temperature, torch.arange(len(queries)))


CASES = {
    "text_embedding": Case(ROWS, model="tiny_bert", nats_per_item=math.log(5 + 4), oracle=whole_batch_loss),
    "text_embedding_last": Case(
        ROWS, {"pooling": "last"}, nats_per_item=math.log(9), oracle=lambda model, batch: whole_last_loss(model, batch)
    ),
}


def whole_last_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The same of each text by itself, by its last token."""
    apart = [
        [ids[mask.bool()] for ids, mask in zip(*of_one, strict=True) if mask.any()]
        for of_one in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    vectors = [[model(input_ids=text[None]).last_hidden_state[0, -1] for text in texts] for texts in apart]
    vectors = [[vector / vector.norm() for vector in of_one] for of_one in vectors]
    documents = [of_one[1] for of_one in vectors] + [vector for of_one in vectors for vector in of_one[2:]]
    scores = torch.stack([torch.stack([of_one[0] @ vector for vector in documents]) for of_one in vectors])
    return functional.cross_entropy(scores / 0.05, torch.arange(len(scores)))


def _task(**settings: Any) -> Task:
    return load_task(TaskSection(name="text_embedding", **settings))


def test_the_loss_sees_the_global_batch(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = prepare(Case(ROWS, model="tiny_bert", task="text_embedding"), tiny_bert)
    # Each micro-batch finds its negatives in itself
    monkeypatch.setitem(accumulate.__globals__, "Pools", type("Nobody", (), {}))
    with pytest.raises(AssertionError):
        check_another_cut_has_the_same_gradient(case)
    assert isinstance(case.task, Pools)


def _vectors() -> tuple[Tensor, Tensor]:
    """Two examples share a query, two a positive; one negative is another's positive."""
    torch.manual_seed(0)
    texts = torch.tensor([[1, 11, 12], [1, 13, 0], [2, 14, 0], [3, 14, 11]])
    known = {number: torch.randn(8) for number in texts.unique().tolist()}
    return torch.stack([torch.stack([known[number] for number in row]) for row in texts.tolist()]), texts


def test_a_positive_of_the_same_query_or_the_same_text_is_no_negative() -> None:
    vectors, texts = _vectors()
    task = _task(temperature=0.1)
    found = task.losses(vectors, {"texts": texts})
    unit = functional.normalize(vectors, dim=-1)
    every = [(number, unit[row, place]) for row in range(4) for place in (1, 2) if (number := int(texts[row, place]))]
    relevant = {1: {11, 13}, 2: {14}, 3: {14}}
    for row in range(4):
        scores = [unit[row, 0] @ unit[row, 1]]
        scores += [unit[row, 0] @ v for number, v in every if number not in relevant[int(texts[row, 0])]]
        wanted = functional.cross_entropy(torch.stack(scores)[None] / 0.1, torch.tensor([0]))
        assert float(found[row]) == pytest.approx(float(wanted), rel=1e-5)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, texts = _vectors()

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        own = vectors.clone().requires_grad_()
        loss = _task().loss_sum(own, {"texts": texts})
        return loss.detach(), torch.autograd.grad(loss, own)[0]

    whole, ranks = loss_and_gradient(), _task().predict(vectors, {"texts": texts})
    monkeypatch.setattr("onecurve.losses.in_batch._ROWS", 3)
    torch.testing.assert_close(loss_and_gradient(), whole)
    assert _task().predict(vectors, {"texts": texts}) == ranks


def test_vectors_of_any_length_are_compared_by_cosines_or_products() -> None:
    vectors, texts = _vectors()
    by_cosine, by_product = _task(normalize=False, similarity="cosine"), _task(normalize=False, temperature=20.0)
    assert torch.equal(by_cosine.losses(vectors, {"texts": texts}), _task().losses(vectors, {"texts": texts}))
    products = _task(temperature=20.0).losses(vectors, {"texts": texts})
    assert not torch.allclose(by_product.losses(vectors, {"texts": texts}), products)
    (answer,) = by_cosine.replies(vectors[:1], {}, None)  # type: ignore[arg-type]
    assert answer["embedding"] == vectors[0, 0].tolist()


def test_each_size_of_a_matryoshka_is_a_term() -> None:
    vectors, texts = _vectors()
    task = _task(matryoshka=[8, 2])
    assert task.terms == {"size_8": 1.0, "size_2": 1.0} and task.num_items({"texts": texts}) == [4, 4]
    found = task.losses(vectors, {"texts": texts})
    assert torch.equal(found[:, 0], _task().losses(vectors, {"texts": texts}))
    assert torch.equal(found[:, 1], _task().losses(vectors[..., :2], {"texts": texts}))


def test_documents_are_searched_in_all_distinct_ones() -> None:
    from sklearn.metrics import ndcg_score

    vectors, texts = _vectors()
    scores = _task(cutoff=2).metrics(json.loads(json.dumps(_task().predict(vectors, {"texts": texts}))), 1.0, Survey())
    unit, corpus = functional.normalize(vectors, dim=-1), {}
    for row, place in ((row, place) for row in range(4) for place in (1, 2) if texts[row, place]):
        corpus.setdefault(int(texts[row, place]), unit[row, place])
    relevant = {1: {11, 13}, 2: {14}, 3: {14}}
    firsts = {1: unit[0, 0], 2: unit[2, 0], 3: unit[3, 0]}
    got = [[float(firsts[query] @ vector) for vector in corpus.values()] for query in relevant]
    wanted = [[int(number in numbers) for number in corpus] for numbers in relevant.values()]
    assert scores["ndcg@2"] == pytest.approx(ndcg_score(wanted, got, k=2))
    orders = [
        [label for _, label in sorted(zip(g, w, strict=True), reverse=True)] for g, w in zip(got, wanted, strict=True)
    ]
    assert scores["mrr"] == pytest.approx(sum(1 / (order.index(1) + 1) for order in orders) / 3)
    assert scores["recall@2"] == pytest.approx(sum(sum(order[:2]) / sum(order) for order in orders) / 3)
    assert scores["queries"] == {"scored": 3}


@pytest.mark.parametrize("vector", [torch.ones(8), torch.full((8,), math.nan)])
def test_a_model_that_tells_nothing_apart_gets_no_credit(vector: Tensor) -> None:
    texts = torch.tensor([[1, 11], [2, 12], [3, 13], [4, 14]])
    assert _task().predict(vector.expand(4, 2, 8), {"texts": texts}) == [([4], 1), ([4], 2), ([4], 3), ([4], 4)]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"query": "a"}, "positive is missing"),
        ({"query": " ", "positive": "b"}, "query is empty"),
        ({"query": "a", "positive": "b", "negative": ["c", 3]}, r"negative must be text; got 3 \(int\)"),
        ({"query": "a", "positive": "b", "negative": "b"}, "a negative is the positive"),
    ],
)
def test_a_bad_row_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        _task().check(row)


def test_a_model_that_has_no_vector_for_a_text_is_refused() -> None:
    from transformers import BertConfig, T5Config

    with pytest.raises(ConfigError, match="encoder with a decoder"):
        _task()._check_model(T5Config())
    with pytest.raises(ConfigError, match="768 dimensions"):
        _task(matryoshka=[64, 32])._check_model(BertConfig())
    with pytest.raises(ConfigError, match="distinct numbers"):
        _task(matryoshka=[64, 64])


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        (["--train.compile", "true"], "train.compile: text_embedding computes each step twice"),
        (["--eval.predictions", "true"], "eval.predictions: has no effect: an example has no loss of its own"),
        (["--train.micro_batch_size", "null", "--train.micro_batch_tokens", "99"], "hold several sequences each"),
        (["--eval.best_metric", "ndcg@5"], r"no metric 'ndcg@5'.* Did you mean 'ndcg@10'"),
    ],
)
def test_a_setting_that_does_not_suit_is_refused_before_anything_is_loaded(setting: list[str], why: str) -> None:
    from onecurve.preflight import read

    with pytest.raises(ConfigError, match=why):
        read(["recipes/text_embedding.yaml", *setting])


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["whole", "cached"])
@pytest.mark.parametrize(
    ("settings", "similarity"), [({}, "cos_sim"), ({"normalize": False, "temperature": 2.0}, "dot_score")]
)
def test_what_sentence_transformers_itself_computes_is_the_loss_of_our_batch(
    cached: bool, settings: dict[str, Any], similarity: str, tiny_bert: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer, losses, util
    from sentence_transformers.models import Pooling, Transformer

    texts = "dog fox sun film lazy quick brown happy answer left right jumps".split()
    rows = [{"query": texts[n], "positive": texts[n + 1], "negative": texts[n + 2]} for n in range(0, 12, 3)]
    case = prepare(Case(rows, settings, task="text_embedding"), tiny_bert)
    bert = Transformer(str(tiny_bert))
    bert.model.load_state_dict(case.model.state_dict())
    model = SentenceTransformer(modules=[bert, Pooling(64, "mean")], device="cpu").eval()
    options: dict[str, Any] = {"scale": 1 / case.task.settings.temperature, "similarity_fct": getattr(util, similarity)}
    kind = losses.CachedMultipleNegativesRankingLoss if cached else losses.MultipleNegativesRankingLoss
    loss = kind(model, **options, **({"mini_batch_size": 3} if cached else {}))
    features = [model.preprocess([row[name] for row in rows]) for name in ("query", "positive", "negative")]
    theirs = loss(features, torch.zeros(0))
    theirs.backward()
    batch = case.batch()
    ours = case.task.loss_sum(case.task.forward(case.model, batch), batch) / len(rows)
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    gradients = [
        torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None])
        for one in (case.model, bert.model)
    ]
    assert bool(gradients[1].any())
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-5


SCORED = [
    {"query": "how long is the crossing?", "positive": "it takes forty minutes", "score": 0.9},
    {"query": "are dogs allowed?", "positive": "the café sells soup", "score": "-0.1"},
    {"query": "when?", "positive": "at ten in the evening, from the quay", "score": 1},
]


def cosine_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """As CosineSimilarityLoss of sentence-transformers: the mean squared error of cosines."""
    mask = batch["attention_mask"].flatten(0, 1)
    hidden = model(input_ids=batch["input_ids"].flatten(0, 1), attention_mask=mask).last_hidden_state
    means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    vectors = functional.normalize(means, dim=-1).unflatten(0, (-1, 2))
    return functional.mse_loss((vectors[:, 0] * vectors[:, 1]).sum(-1), batch["score"])


CASES["text_embedding, scored"] = Case(
    SCORED, {"loss": "cosine"}, model="tiny_bert", nats_per_item=float("nan"), oracle=cosine_loss
)


def _shaped(record: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The row as the task reads it, and the name of the form that it has."""
    columns = Columns.resolve({}, Task.columns, Task.shapes.values())
    names = columns.names_in(record)
    shape = next((name for name, known in Task.shapes.items() if set(names.values()) == {*known.values()}), "")
    return {column: record[name] for column, name in names.items() if name in record}, shape


def test_columns_of_sentence_transformers_are_known() -> None:
    row, shape = _shaped({"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d", "negative_3": None})
    assert negatives(row) == ["c", "d"] and shape == "sentence-transformers (anchor)"
    _task().check(row)
    assert negatives(_shaped({"query": "a", "positive": "b", "negative_2": "c"})[0]) == ["c"]
    row, shape = _shaped({"sentence1": "a", "sentence2": "b", "score": 0.3})
    assert row == {"query": "a", "positive": "b", "score": 0.3} and shape == "sentence-transformers (scored pair)"
    _task(loss="cosine").check(row)
    row, shape = _shaped({"sentence1": "a", "sentence2": "b"})
    assert row == {"query": "a", "positive": "b"} and shape == "sentence-transformers (pair)"
    _task().check(row)
    for asked in ("query", "question"):  # as mine_hard_negatives writes them
        row, shape = _shaped({asked: "a", "answer": "b", "negative_1": "c", "negative_2": "d"})
        assert (row["query"], row["positive"], negatives(row)) == ("a", "b", ["c", "d"])
        assert shape == f"{asked} and answer" and negatives(_shaped({asked: "a", "answer": "b", "negative": "c"})[0])
        _task().check(row)


@pytest.mark.parametrize(
    ("settings", "record", "why"),
    [
        ({}, {"question": "a", "answer": "b", "label": 0}, "set task.loss to cosine"),
        ({}, {"sentence1": "a", "sentence2": "b", "score": 0.3}, "set task.loss to cosine"),
        ({}, {"sentence1": "a", "sentence2": "b", "label": 0}, "set task.loss to cosine"),  # no pair of alike texts
        ({"loss": "cosine"}, {"query": "a", "positive": "b"}, "score must be a number; got None"),
        ({"loss": "cosine"}, {"query": "a", "positive": "b", "score": 4.2}, "divide it by the scale's maximum"),
        ({"loss": "cosine"}, {"query": "a", "positive": "b", "score": 1, "negative": "c"}, "compares pairs alone"),
        ({}, {"anchor": "a", "positive": "b", "negative_2": "b"}, "a negative is the positive"),
    ],
)
def test_a_score_is_never_taken_for_something_else(settings: dict[str, Any], record: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        _task(**settings).check(_shaped(record)[0])


def test_scored_pairs_are_correlated() -> None:
    task = _task(loss="cosine")
    vectors = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [1.0, 1.0]]])
    pairs = task.predict(vectors, {"score": torch.tensor([0.9, 0.1, 0.5])})
    assert [cosine for cosine, _ in pairs] == pytest.approx([1, 0, 0.5**0.5])
    assert task.metrics(pairs, 0.1, Survey())["spearman"] == pytest.approx(1)
    assert {"task.temperature", "task.cutoff"} <= task.without_effect().keys()
