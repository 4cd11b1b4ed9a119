"""Text embedding: a vector for each text, near to that of texts which belong to it (a bi-encoder)."""

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from onecurve.content.rewording import UNCHANGED
from onecurve.errors import ConfigError
from onecurve.losses.in_batch import in_batch_losses, relevant_ranks
from onecurve.metrics import ranking
from onecurve.tasks._embedding_rows import COLUMNS, MORE, SHAPES, negatives, score
from onecurve.tasks._sentence_transformers import NOTHING, Read, Said, files_of_vectors, notes_on, said_of_vectors
from onecurve.tasks._sequences import SequencesTask, by_example, each_sequence, pool_tokens, put_back, sequences
from onecurve.tasks.base import Answer, BadRow, Batch, Example, Processing, Row, Settings, Survey, check_text

if TYPE_CHECKING:
    from torch import Tensor, nn

_ELSE = {"pooling": "mean", "normalize": True, "query_prompt": "", "document_prompt": ""}
"""Settings that a model's files may say, and their values where neither they nor the recipe do."""


class TextEmbeddingSettings(Settings):
    loss: Literal["contrastive", "cosine"] = "contrastive"
    """contrastive: each query's positive is told from all documents of the global batch. cosine: the square of how far
    the cosine of query and positive is from the row's `score`."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """What of the last hidden states is a text's vector: their mean, the first, or the last, as for a decoder. This,
    `normalize`, `similarity` and the prompts are by default as the model's folder says where sentence-transformers
    wrote it; else mean."""
    normalize: bool | None = None
    """Whether vectors have length 1; default: as the model's folder says, else true."""
    similarity: Literal["cosine", "dot"] | None = None
    """The score of two vectors in the loss and in searches: their cosine or their product, one and the same for those
    of length 1. Default: as the model's folder says, else dot where `normalize` is false, else cosine."""
    temperature: float = Field(default=0.05, gt=0)
    """What scores are divided by in the loss. sentence-transformers calls the reciprocal `scale`."""
    query_prompt: str | None = None
    """Text put before each query, such as 'query: ' for E5 models; default: as the model's folder says, else none."""
    document_prompt: str | None = None
    """Text put before each document, such as 'passage: '; default: as the model's folder says, else none."""
    matryoshka: list[int] = Field(default_factory=list)
    """Numbers of leading dimensions that are each to do as a vector, such as [384, 128, 64]; the model's own size must
    be one of them. Each is a term of the loss, with weight 1 (Kusupati et al., 2022)."""
    cutoff: int = Field(default=10, gt=0)
    """How many documents from the top count for NDCG and recall."""

    @model_validator(mode="after")
    def _sizes_are_sizes(self) -> "TextEmbeddingSettings":
        if any(size < 1 for size in self.matryoshka) or len(set(self.matryoshka)) < len(self.matryoshka):
            raise ValueError(f"matryoshka must be distinct numbers above 0; got {self.matryoshka}")
        return self

    @property
    def is_scored(self) -> bool:
        """Whether rows are pairs with a score."""
        return self.loss == "cosine"

    @property
    def asked(self) -> dict[str, Any]:
        """Those of the settings that a model's files may say which have a value."""
        values = self.model_dump(include={*_ELSE, "similarity"})
        return {name: value for name, value in values.items() if value is not None}

    def filled(self, said: Mapping[str, Any]) -> "TextEmbeddingSettings":
        """Return the settings with a value for each: their own, else what a model's files said."""
        similarity = "dot" if self.normalize is False else "cosine"
        return self.model_copy(update={**_ELSE, "similarity": similarity, **said, **self.asked})


class Task(SequencesTask):
    """Embed texts, so that a query's vector is near to those of the documents that answer it.

    The loss is the cross-entropy of each query's positive among all documents of the global batch, however that is cut:
    the positives and negatives of every example. A document that is a positive of the same query in another example, or
    equal to one, is no negative. In evaluations each query is compared with all documents of the split: the loss there
    is of more negatives than in training, and MRR, NDCG and recall are of a search in all distinct documents of the
    split.

    With `task.loss: cosine` rows are pairs with a score of how alike they are, as of the STS benchmark; cosines and
    scores are then correlated.
    """

    Settings: ClassVar[type[Settings]] = TextEmbeddingSettings
    columns: ClassVar[Mapping[str, str]] = COLUMNS
    shapes: ClassVar[Mapping[str, Mapping[str, str]]] = SHAPES
    reworded: ClassVar[Sequence[str]] = ("query", "positive", "negative", *MORE)
    targets: ClassVar[frozenset[str]] = frozenset({"negative", *MORE, "score"})
    sample: ClassVar[Sequence[Row]] = (
        {
            "query": "How long is the ferry to the island?",
            "positive": "The crossing takes forty minutes.",
        },
        {"query": "Where do I buy a ticket?", "positive": "Tickets are sold at the kiosk on the quay."},
        {"query": "May dogs come aboard?", "positive": "Dogs travel free of charge if they are on a lead."},
        {"query": "When does the last boat leave?", "positive": "The last departure is at ten in the evening."},
        {"query": "Is there food on board?", "positive": "The café on the upper deck serves soup and sandwiches."},
        {"query": "Can I take my bicycle?", "positive": "Bicycles are carried on the car deck for two euros."},
    )
    peft_task_type: ClassVar[str | None] = "FEATURE_EXTRACTION"
    scoring_settings: ClassVar[frozenset[str]] = frozenset({"cutoff"})
    loss_settings: ClassVar[frozenset[str]] = frozenset({"similarity"})
    pooled: Sequence[str] = ("texts",)

    def __init__(self, settings: TextEmbeddingSettings, said: Said = NOTHING) -> None:
        super().__init__(settings.filled(said.values))
        self.unfilled, self.longest = settings, said.longest
        self.followed = {name: file for name, file in said.files.items() if name not in settings.asked}
        self.notes: list[str] = []
        self.metric_names: Sequence[str] = ("loss", *ranking.names(settings.cutoff, searches=True))
        if settings.is_scored:
            self.pooled, self.metric_names = ("score",), ("loss", "pearson", "spearman", "mse", "mae")
            self.lower_is_better = frozenset({"loss", "mse", "mae"})  # type: ignore[misc]
        if settings.matryoshka:
            self.terms = {f"size_{size}": 1.0 for size in settings.matryoshka}

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        told = super().without_effect(reading)
        if not self.settings.is_scored:
            return told
        why = "task.loss is cosine"
        return {**told, "task.temperature": why, "task.cutoff": why}

    @property
    def undecided(self) -> list[str]:
        return [name for name in (*_ELSE, "similarity") if name not in self.unfilled.asked]

    def following(self, read: Read, path: str) -> "Task":
        said = said_of_vectors(read, path)
        task = type(self)(self.unfilled, said)
        task.notes = notes_on(self.unfilled.asked, said, path)
        return task

    # Rows

    def check_input(self, row: Row) -> None:
        check_text(row["query"] if "query" in row else row.get("positive"), "query" if "query" in row else "document")

    def check(self, row: Row) -> None:
        for column in ("query", "positive"):
            check_text(row.get(column), column)
        for text in negatives(row):
            check_text(text, "negative")
            if text == row["positive"]:
                raise BadRow("a negative is the positive")
        if self.settings.is_scored:
            score(row)
        elif row.get("score") is not None:
            raise BadRow(
                "has a score, which the contrastive loss does not read: set task.loss to cosine; or, if every "
                "positive belongs to its query, data.columns to the columns of both, such as {query: question, "
                "positive: answer}, with score: '' where the file has such a column"
            )

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        self._check_model(reading.config)
        query, document = self.settings.query_prompt, self.settings.document_prompt
        texts = [query + row["query"], *(document + text for text in (row["positive"], *negatives(row)))]
        count = len(self.settings.matryoshka)
        example = {**self.tokenized(texts, reading, truncate), "num_items": [1] * count if count else 1}
        return [example | ({"score": score(row)} if self.settings.is_scored and "score" in row else {})]

    def _check_model(self, config: Any) -> None:
        if getattr(config, "is_encoder_decoder", False):
            raise ConfigError(
                f"is an encoder with a decoder ({config.model_type}), which has no one vector for a text.",
                where="model.path",
                fix="Use an encoder, or a decoder with task.pooling: last.",
            )
        size, sizes = getattr(config and config.get_text_config(), "hidden_size", None), self.settings.matryoshka
        if sizes and size is not None and max(sizes) != size:
            raise ConfigError(
                f"are {sizes}, and the model's vectors have {size} dimensions.",
                where="task.matryoshka",
                fix=f"Have {size} be the largest of them.",
            )

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        """Pad the texts; `texts` numbers each by its tokens: int64 [examples, texts], 0 where an example has none.

        Texts that were changed for training keep the numbers they had: two changes of one text are no negatives.
        Or, of scored pairs, `score`: float32 [examples].
        """
        import torch

        if "score" in examples[0]:
            scores = torch.tensor([example["score"] for example in examples], dtype=torch.float32)
            return super().collate(examples, reading) | {"score": scores}
        unchanged = [example.get(UNCHANGED, example) for example in examples]
        numbers = torch.tensor([_number(one["input_ids"]) for example in unchanged for one in sequences(example)])
        texts = by_example(numbers, [len(example["lengths"]) for example in examples])
        return super().collate(examples, reading) | {"texts": texts}

    # The model

    def auto_model(self) -> type:
        from transformers import AutoModel

        return AutoModel

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        """Return the vector of each text, not normalised: float32 [examples, texts, size]."""
        inputs, places, shape = each_sequence(batch)
        hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]
        hidden = hidden[:, -mask.shape[1] :].float()  # PEFT's prompt learning prepends virtual tokens
        return put_back(pool_tokens(hidden, mask, self.settings.pooling), places, shape)

    def vectors(self, outputs: "Tensor", size: int | None = None) -> "Tensor":
        """Return vectors, cut to their leading `size` dimensions, whose products are the scores."""
        return _of_length_1(outputs[..., :size], self.settings.normalize or self.settings.similarity == "cosine")

    def losses(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        import torch

        sizes, outputs = self.settings.matryoshka or [None], outputs.float()
        if self.settings.is_scored:
            of_sizes = [(_cosines(outputs, size) - batch["score"]) ** 2 for size in sizes]
        else:
            temperature = self.settings.temperature
            of_sizes = [in_batch_losses(self.vectors(outputs, size), batch["texts"], temperature) for size in sizes]
        return of_sizes[0] if len(of_sizes) == 1 else torch.stack(of_sizes, 1)

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        return self.losses(outputs, batch).sum(0)

    def num_items(self, batch: Batch) -> Any:
        count = len(self.settings.matryoshka)
        examples = len(batch[self.pooled[0]])
        return [examples] * count if count else examples

    # Scores

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[Any, Any]]:
        """Return (ranks of the query's relevant documents, the query's number) per example of a pool.

        Or, of a scored pair, (its cosine, its score).
        """
        if self.settings.is_scored:
            return list(zip(_cosines(outputs.float()).tolist(), batch["score"].tolist(), strict=True))
        ranks = relevant_ranks(self.vectors(outputs.float()), batch["texts"])
        return list(zip(ranks, batch["texts"][:, 0].tolist(), strict=True))

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        """Score a search for each distinct query of the split in all its distinct documents; or scored pairs."""
        if self.settings.is_scored:
            from onecurve.metrics.regression import score_regression

            return {"loss": loss, **score_regression(pairs)}
        return {"loss": loss, **ranking.score_search({query: ranks for ranks, query in pairs}, self.settings.cutoff)}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        texts = [tokenizer.decode(one["input_ids"], clean_up_tokenization_spaces=False) for one in sequences(example)]
        alike = f", alike by {example['score']:g}" if "score" in example else ""
        return f"{texts[0]} -> «{texts[1]}»" + "".join(f", not «{text}»" for text in texts[2:]) + alike

    # Questions

    def question(self, row: Row, reading: Processing, truncate: bool) -> Example:
        """Encode a text to be embedded: a query, or a document, each with its prompt."""
        settings = self.settings
        text = settings.query_prompt + row["query"] if "query" in row else settings.document_prompt + row["positive"]
        return {**self.tokenized([text], reading, truncate), "num_items": 0}

    def replies(self, outputs: "Tensor", batch: Batch, reading: Processing) -> list[Answer]:
        """Return the `embedding` of a query, or of a document: a list of numbers."""
        return [{"embedding": one} for one in _of_length_1(outputs.float()[:, 0], self.settings.normalize).tolist()]

    # The folder

    def beside(self, config: Any, max_length: int) -> Mapping[str, Any]:
        """Return what sentence-transformers needs to build the model: its modules, their settings, the prompts."""
        return files_of_vectors(self.settings, config, max_length)


def _of_length_1(vectors: "Tensor", wanted: bool) -> "Tensor":
    from torch.nn import functional

    return functional.normalize(vectors, dim=-1) if wanted else vectors


def _cosines(outputs: "Tensor", size: int | None = None) -> "Tensor":
    """Return the cosine of each pair's leading dimensions: float32 [examples]."""
    from torch.nn import functional

    return functional.cosine_similarity(outputs[:, 0, :size], outputs[:, 1, :size], dim=-1)


def _number(ids: Sequence[int]) -> int:
    """Return a number above 0 that equal texts share, and others but by a chance of 1 in 2 ** 63."""
    return max(1, int.from_bytes(blake2b(array("q", ids).tobytes(), digest_size=8).digest(), "little") >> 1)
