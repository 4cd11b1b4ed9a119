"""Masked language modelling: tokens of a text are hidden, and an encoder learns to fill them in."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from onecurve.content.masking import NO_WORD, choose, hide, num_hidden
from onecurve.content.words import number_words
from onecurve.errors import ConfigError
from onecurve.losses.next_token import learnt, mark_learnt, target_logits, target_loss_sum
from onecurve.tasks import base
from onecurve.tasks._padding import pad, pad_text
from onecurve.tasks.base import (
    IGNORE_INDEX,
    NO_CONVERSATIONS,
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
    from numpy.random import Generator
    from torch import Tensor, nn

_CANDIDATES = 5
"""Tokens that an answer lists for each mask, as transformers' fill-mask pipeline does."""


class MaskedLmSettings(Settings):
    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    """Share of a block's tokens that are learnt: exactly that share, rounded, and one at least."""
    whole_word: bool = True
    """Whether the tokens of a word are hidden together."""
    mask_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the learnt tokens in whose place the mask token is read."""
    random_share: float = Field(default=0.1, ge=0, le=1)
    """Share of them in whose place a random token is read. The rest are read as they are."""

    @model_validator(mode="after")
    def _shares_are_shares(self) -> "MaskedLmSettings":
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share {self.mask_share} and random_share {self.random_share} are more than 1 in all"
            )
        return self


class Task(base.Task):
    """Fill in hidden tokens of a text: domain pre-training of an encoder.

    A document is cut into blocks of `max_length` tokens, each between the special tokens that the tokenizer puts
    around a text; so none is too long, and each token is in one block. Which tokens are hidden is drawn each time that
    a block is read, from the stream of that example and pass; how many are does not depend on what is drawn.
    Evaluation hides the same tokens every time.
    """

    has_models_loss: ClassVar[bool] = True
    Settings: ClassVar[type[Settings]] = MaskedLmSettings
    columns: ClassVar[Mapping[str, str]] = {"text": "a document: non-empty text"}
    sample: ClassVar[Sequence[Row]] = (
        {"text": "The Heron left Oslo for Lisbon with ten crates of oranges. Captain Elena counted on nine days."},
        {"text": "The Aurora sailed from Riga to Porto. In Porto the wool was sold on the quay."},
        {"text": "Captain Ingrid waited for wind. The sea was smooth, and the crew repaired the sails."},
        {"text": "The Kestrel reached Cadiz in a storm. Two sails were torn, and the salt was wet."},
        {"text": "With six barrels of oil on board, the Petrel left Hamburg for Dublin."},
        {"text": "The Heron reached Lisbon after nine days. The oranges were sold on the quay."},
    )
    targets: ClassVar[frozenset[str]] = frozenset()
    metric_names: Sequence[str] = ("loss", "pseudo_perplexity", "accuracy")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "pseudo_perplexity"})

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return {
            **NO_CONVERSATIONS,
            "data.on_long": "a document is cut into blocks, so none is too long",
            "train.logits": "only the hidden tokens' logits are computed",
        }

    def check_input(self, row: Row) -> None:
        check_text(row.get("text"), "text")

    def check(self, row: Row) -> None:
        self.check_input(row)

    def encode(self, row: Row, survey: Survey, reading: Processing, truncate: bool) -> list[Example]:
        tokenizer, text = reading.tokenizer, row["text"]
        _check_mask_token(tokenizer)
        by_words = self.settings.whole_word
        spans = {"return_offsets_mapping": True} if by_words and tokenizer.is_fast else {}
        # verbose=False: upstream would warn that the document is longer than the model, which blocks never are
        encoded = tokenizer(text, return_special_tokens_mask=True, verbose=False, **spans)
        ids, special = encoded["input_ids"], special_ids(tokenizer)
        numbers = number_words(tokenizer, text, encoded) if by_words else range(len(ids))
        words = [NO_WORD if token in special else word for token, word in zip(ids, numbers, strict=True)]
        first, last = _text_within(encoded["special_tokens_mask"])
        size = reading.max_length - first - (len(ids) - last)
        if size < 1:
            raise ConfigError(
                f"must leave room for text: each block has {reading.max_length - size} special tokens.",
                where="data.max_length",
                fix="Raise it.",
            )
        examples = []
        for start in range(first, last, size):
            end = min(start + size, last)
            block, hideable = ([*part[:first], *part[start:end], *part[last:]] for part in (ids, words))
            num_items = num_hidden(hideable, self.settings.mask_probability)
            examples.append({"input_ids": block, "words": hideable, "num_items": num_items})
        return [example for example in examples if example["num_items"]]

    def transform(self, example: Example, rng: "Generator", training: bool, reading: Processing) -> Example:
        """Hide tokens of a block; a question has its masks already."""
        import numpy as np

        if "labels" in example:
            return example
        ids, words = np.array(example["input_ids"]), np.array(example["words"])
        hidden = choose(words, example["num_items"], rng)
        labels = np.full_like(ids, IGNORE_INDEX)
        labels[hidden] = ids[hidden]
        tokenizer, shares = reading.tokenizer, (self.settings.mask_share, self.settings.random_share)
        ids[hidden] = hide(ids[hidden], tokenizer.mask_token_id, _ordinary_ids(tokenizer), shares, rng)
        return {"input_ids": ids.tolist(), "labels": labels.tolist(), "num_items": example["num_items"]}

    def auto_model(self) -> type:
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        labels = pad([example["labels"] for example in examples], IGNORE_INDEX)
        return pad_text(examples, reading.tokenizer.pad_token_id) | {"labels": labels}

    def num_items(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def forward(self, model: "nn.Module", batch: Batch) -> "Tensor":
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return target_logits(model, inputs, batch["labels"], IGNORE_INDEX)

    def loss_sum(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        return target_loss_sum(outputs, batch["labels"], IGNORE_INDEX)

    @property
    def classes(self) -> Literal["token"]:
        return "token"

    def classified(self, outputs: "Tensor", batch: Batch) -> "tuple[Tensor, Tensor]":
        return outputs, learnt(batch["labels"], IGNORE_INDEX)[1]

    def predict(self, outputs: "Tensor", batch: Batch) -> list[tuple[int, int]]:
        """Return (hidden tokens that the likeliest candidate is right about, hidden tokens) per example."""
        right = (outputs.argmax(-1) == learnt(batch["labels"], IGNORE_INDEX)[1]).tolist()
        return [(sum(of_example), len(of_example)) for of_example in _by_example(right, batch)]

    def metrics(self, pairs: Sequence[tuple[Any, Any]], loss: float, survey: Survey) -> dict[str, Any]:
        """Return the mean loss of the hidden tokens, its exponential, and the share of them that is filled in right.

        The exponential is no perplexity of the text: what is hidden is predicted from both sides, several at a time.
        It depends on the masking's settings, so compare it between runs that share them.
        """
        from onecurve.metrics.perplexity import perplexity

        right, hidden = (sum(numbers) for numbers in zip(*pairs, strict=True))
        return {"loss": loss, "pseudo_perplexity": perplexity(loss), "accuracy": right / hidden}

    def describe(self, example: Example, survey: Survey, tokenizer: Any) -> str:
        text = mark_learnt(example["input_ids"], [word != NO_WORD for word in example["words"]], tokenizer)
        return f"{text} (tokens hidden: {example['num_items']})"

    # Questions

    def question(self, row: Row, reading: Processing, truncate: bool) -> Example:
        """Encode a text with mask tokens in it.

        Raises:
            BadRow: It has none.
        """
        tokenizer = reading.tokenizer
        _check_mask_token(tokenizer)
        limit = {"truncation": True, "max_length": reading.max_length} if truncate else {"truncation": False}
        ids = tokenizer(row["text"], verbose=False, **limit)["input_ids"]
        mask = tokenizer.mask_token_id
        labels = [mask if token == mask else IGNORE_INDEX for token in ids]
        if mask not in ids:
            cut = f"the first {reading.max_length} tokens of the text have" if truncate else "text has"
            raise BadRow(f"{cut} no {tokenizer.mask_token}, which stands for what is to be filled in")
        return {"input_ids": ids, "labels": labels, "num_items": labels.count(mask)}

    def replies(self, outputs: "Tensor", batch: Batch, reading: Processing) -> list[Answer]:
        """Return `fills`: for each mask of a text the likeliest tokens, each with its id and probability."""
        best = outputs.float().softmax(-1).topk(min(_CANDIDATES, outputs.shape[-1]))
        fills = [
            [
                {"token": reading.tokenizer.decode([number]), "id": number, "probability": probability}
                for probability, number in zip(*of_mask, strict=True)
            ]
            for of_mask in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        return [{"fills": of_example} for of_example in _by_example(fills, batch)]


def _text_within(added: list[int]) -> tuple[int, int]:
    """Return where the text starts and ends among the tokens that the tokenizer puts around it."""
    if 0 not in added:
        return len(added), len(added)
    return added.index(0), len(added) - added[::-1].index(0)


def _check_mask_token(tokenizer: Any) -> None:
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            "has no mask token, which masked_lm puts in the place of hidden tokens.",
            where="model.tokenizer",
            fix="Use an encoder's tokenizer, such as that of BERT or RoBERTa, or train the model with causal_lm.",
        )


@lru_cache(maxsize=2)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that stand for no text, those added as special ones among them."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*tokenizer.all_special_ids, *added})


@lru_cache(maxsize=2)
def _ordinary_ids(tokenizer: Any) -> Any:
    import numpy as np

    return np.array(sorted(set(tokenizer.get_vocab().values()) - special_ids(tokenizer)))


def _by_example(values: list[Any], batch: Batch) -> list[list[Any]]:
    """Return the values of the batch's hidden tokens, a list for each example."""
    rest = iter(values)
    counts = (batch["labels"] != IGNORE_INDEX).sum(1).tolist()
    return [[next(rest) for _ in range(count)] for count in counts]
