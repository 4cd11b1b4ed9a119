"""What turns rows into model inputs, as a run's reading does, for tests that load no model folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class ReadingOf:
    """A reading whose processor `load` returns when it is first asked for."""

    load: Callable[[], Any]
    max_length: int = 100
    config: Any = None
    labels: Sequence[str] = ()
    positions: int | None = None

    @cached_property
    def processor(self) -> Any:
        return self.load()

    @property
    def tokenizer(self) -> Any:
        return self.processor


def reading(processor: Any, max_length: int = 100) -> ReadingOf:
    return ReadingOf(lambda: processor, max_length)


def padding(pad_id: int | None) -> Any:
    """A reading of which only the padding token is known."""
    return reading(SimpleNamespace(pad_token_id=pad_id))
