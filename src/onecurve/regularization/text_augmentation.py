"""Training texts changed anew each time they are read: by swaps, deletions, synonyms, and a function of the user's."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecurve import user_code
from onecurve.config import RegularizationSection
from onecurve.content.rewording import TEXTS, UNCHANGED, Draft, Synonyms, draw
from onecurve.errors import ConfigError, DataError
from onecurve.tasks.base import Example, Processing, Survey, Task

if TYPE_CHECKING:
    from numpy.random import Generator

_INPUTS = ("input_ids", "token_type_ids", "lengths")
"""What of an example depends on its texts alone. Its targets stay."""
_FUNCTION = "regularization.text_function"


@dataclass(frozen=True)
class TextAugmentation:
    """Changes the texts of an example, and nothing else of it.

    An example never becomes longer than it was when it was encoded, so that the batch plan, which knows that length,
    stays right: synonyms are taken back, the last first, until it fits, and otherwise it stays as it is.
    """

    section: RegularizationSection
    synonyms: Synonyms = field(default_factory=dict)
    code: str = ""
    """Hash of the synonyms and of the user's code; empty where there are neither."""

    @cached_property
    def _function(self) -> Callable[[str, "Generator"], str] | None:
        name = self.section.text_function
        return user_code.load(name, _FUNCTION) if name else None

    def __call__(self, task: Task, example: Example, rng: "Generator", reading: Processing) -> Example:
        """Return an example with other texts, drawn from `rng`.

        Args:
            task: Reads the texts.
            example: With its texts as `TEXTS`.
            rng: Keyed by the seed, the pass over the data and the example.
            reading: Not used by another thread meanwhile.

        Raises:
            DataError: The user's function fails, or returns something else than text.
        """
        row = json.loads(example[TEXTS])
        section = self.section
        settings = (section.word_swap or 0.0, section.word_deletion or 0.0, self.synonyms, section.synonym_share)
        drafts = {place: draw(text, rng, *settings) for place, text in _texts(row)}
        seed = int(rng.integers(2**63))
        while True:
            changed = {**example, **self._encoded(task, _put(row, drafts, self._finish(seed)), reading)}
            # With its targets, which may be longer than its texts
            if task.length(changed) <= task.length(example) and task.num_tokens(changed) <= task.num_tokens(example):
                return {**changed, UNCHANGED: example}
            if not any(draft.undo() for draft in reversed(drafts.values())):
                return example

    def _encoded(self, task: Task, row: dict[str, Any], reading: Processing) -> Example:
        (found,) = task.encode(row, Survey(), reading, truncate=True)
        return {name: found[name] for name in _INPUTS if name in found}

    def _finish(self, seed: int) -> Callable[[str], str]:
        """Return what the user's function makes of each text: it draws the same at each call of this."""
        from numpy.random import Generator, Philox

        function, name, rng = self._function, self.section.text_function, Generator(Philox(key=seed))
        return (lambda text: _called(function, text, rng, str(name))) if function else str


def _texts(row: dict[str, Any]) -> Iterator[tuple[tuple[str, int | None], str]]:
    for column, value in row.items():
        if isinstance(value, list):
            yield from (((column, place), text) for place, text in enumerate(value))
        else:
            yield (column, None), value


def _put(
    row: dict[str, Any], drafts: dict[tuple[str, int | None], Draft], finish: Callable[[str], str]
) -> dict[str, Any]:
    changed = {column: [*value] if isinstance(value, list) else value for column, value in row.items()}
    for (column, place), draft in drafts.items():
        if place is None:
            changed[column] = finish(draft.text)
        else:
            changed[column][place] = finish(draft.text)
    return changed


def _called(function: Callable[[str, "Generator"], str], text: str, rng: "Generator", name: str) -> str:
    try:
        found = function(text, rng)
    except Exception as error:
        raise DataError(f"{name} fails for {text!r}: {type(error).__name__}: {error}", where=_FUNCTION) from error
    if not isinstance(found, str) or not found.strip():
        raise DataError(
            f"{name} returned {found!r} for {text!r}.", where=_FUNCTION, fix="Have it return text that is not blank."
        )
    return found


def build_text_augmentation(section: RegularizationSection) -> TextAugmentation | None:
    """Return what changes training texts; None where nothing does.

    Raises:
        ConfigError: A list of synonyms that cannot be read, or a function that cannot be used.
    """
    if not section.on_texts:
        return None
    digest = hashlib.blake2b(digest_size=16)
    synonyms = read_synonyms(Path(section.synonyms)) if section.synonyms else {}
    if synonyms:
        digest.update(json.dumps(synonyms, sort_keys=True).encode())
    if section.text_function:
        if not user_code.is_external(section.text_function):
            raise ConfigError(
                f"{section.text_function!r} names no function.", where=_FUNCTION, fix=f"Write {user_code.FORM}."
            )
        function = user_code.load(section.text_function, _FUNCTION)
        _check_function(function, section.text_function)
        digest.update(f"{function.__qualname__} {user_code.source_hash(function)}".encode())
    return TextAugmentation(section, synonyms, digest.hexdigest() if synonyms or section.text_function else "")


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """Read a list of synonyms: a word, a tab, and what may stand for it, separated by commas, in each line.

    Empty lines, and lines that begin with #, say nothing.

    Raises:
        ConfigError: No such file, or a line of another form; it names the line.
    """
    key = "regularization.synonyms"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}.", where=key) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{str(path)!r} is not UTF-8.", where=key, fix="Convert it.") from None
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, _, others = line.partition("\t")
        word, synonyms = word.strip(), [other.strip() for other in others.split(",") if other.strip()]
        if not word or not synonyms or any(map(str.isspace, word)):
            raise ConfigError(
                f"{path}, line {number}: {line!r} is not one word, a tab, and synonyms separated by commas.", where=key
            )
        found.setdefault(word.casefold(), []).extend(synonyms)
    if not found:
        raise ConfigError(f"{str(path)!r} has no synonyms.", where=key)
    return found


def _check_function(function: Any, name: str) -> None:
    """Refuse what is no function of a text and a generator, by its signature and by one call.

    Raises:
        ConfigError: It is none.
    """
    from numpy.random import Generator, Philox

    if not inspect.isfunction(function):
        raise ConfigError(f"{name} is not a function: {function!r}.", where=_FUNCTION)
    trial = "A text to try it on."
    try:
        inspect.signature(function).bind(trial, None)
    except TypeError as error:
        raise ConfigError(
            f"{name} cannot be called with a text and a generator of random numbers: {error}.",
            where=_FUNCTION,
            fix="Write def NAME(text: str, rng: numpy.random.Generator) -> str.",
        ) from None
    try:
        found = function(trial, Generator(Philox(key=0)))
    except Exception as error:  # noqa: BLE001  the user's code may raise anything
        raise ConfigError(f"{name} fails for {trial!r}: {type(error).__name__}: {error}", where=_FUNCTION) from None
    if not isinstance(found, str):
        raise ConfigError(f"{name} must return text; for {trial!r} it returned {found!r}.", where=_FUNCTION)
