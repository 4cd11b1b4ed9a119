"""Turns a text with the places of its answers into tokens, and says which of them are learnt."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from onecurve.errors import ConfigError

Span = tuple[int, int]
"""Start and end in characters."""


@dataclass
class Document:
    """A text to learn from, and the positions of the answers."""

    text: str
    answers: list[Span]
    """Start and end of each answer, in characters, with the end token that the template writes after it."""
    is_ended: bool
    """Whether the last answer ends with such a token."""
    add_special_tokens: bool
    """Whether the tokenizer's start token must be added; a chat template writes it itself."""
    found: "Counter[str]" = field(default_factory=Counter)
    """How many answers were found in which way."""


def tokenise(document: Document, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Return the ids, the end token after the last answer among them, and which of them are learnt.

    Raises:
        ConfigError: A tokenizer that does not tell which characters a token stands for, or has no end token.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "learning answers alone needs a fast tokenizer, one that maps tokens to character positions.",
            where="model.tokenizer",
        )
    encoded = tokenizer(
        document.text,
        add_special_tokens=document.add_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids = encoded["input_ids"]
    # A token that reaches across an answer's edge is learnt: it carries a part of the answer. So is one of no width
    # inside: some tokenizers trim the spaces off a token's span, which leaves nothing of a code line's indentation
    inside = bytearray(len(document.text) + 1)
    for start, end in document.answers:
        inside[start:end] = b"\1" * (end - start)
    learnt = [
        1 in inside[left:right] if left < right else bool(left and inside[left - 1] and inside[left])
        for left, right in encoded["offset_mapping"]
    ]
    if not document.is_ended:
        eos = tokenizer.eos_token_id
        if eos is None:
            raise ConfigError(
                "has no end-of-text token to learn after an answer.",
                where="model.tokenizer",
                fix="Use one that has an eos_token.",
            )
        if ids[-1] == eos:  # some tokenizers end with it by themselves
            learnt[-1] = True
        else:
            ids.append(eos)
            learnt.append(True)
    return ids, learnt
