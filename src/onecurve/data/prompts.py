"""What a model is asked when a split's texts are generated: prompts with their references, a row each."""

from dataclasses import dataclass

from onecurve.data.examples import Examples
from onecurve.data.rows import Located
from onecurve.data.sources import Source
from onecurve.errors import ConfigError, DataError
from onecurve.tasks.base import BadRow, Example, Processing, Row, Survey, Task, Writes


@dataclass(frozen=True)
class Prompt:
    """One row."""

    row: int
    """Its number in its data."""
    example: Example
    """What the model reads."""
    length: int
    reference: str


def read_prompts(source: Source, examples: Examples, task: Task, survey: Survey, reading: Processing) -> list[Prompt]:
    """Return a prompt for each row of which there are examples and that has a reference; none where nothing is written.

    Args:
        source: The split's rows.
        examples: Those that they were encoded to.
        task: Knows what of a row is asked.
        survey: What the training split told.
        reading: Turns text into tokens.

    Raises:
        ConfigError: Texts of this length do not fit into the model.
        DataError: A row whose reference or prompt does not suit the task's settings.
    """
    if not isinstance(task, Writes) or task.generation is None:
        return []
    kept = set(examples.rows.tolist())
    found: list[Prompt] = []
    for row in source.rows():
        if not isinstance(row, Located) or row.number not in kept:
            continue
        try:
            asked = task.asked(row.row)
            if asked is not None:
                prompt = encode_prompt(task, asked[0], survey, reading)
                found.append(Prompt(row.number, prompt, task.length(prompt), asked[1]))
                _check_room(found[-1].length, task.generation["max_new_tokens"], reading, row.place)
        except BadRow as error:
            raise DataError(f"{error}.", where=row.place) from None
    if not found:
        raise DataError(
            f"no row of '{source.spec}' has an answer to compare a generated text with.",
            where=source.key,
            fix="Remove task.generate, or check data.columns.",
        )
    return found


def encode_prompt(task: Writes, row: Row, survey: Survey, reading: Processing) -> Example:
    """Encode what a model is asked, cut where an encoder reads no more."""
    assert isinstance(task, Task)
    prompt = task.prompt(row, reading)
    if reading.config.is_encoder_decoder and task.length(prompt) > reading.max_length:
        (prompt,) = task.encode(row, survey, reading, truncate=True)
    return prompt


def _check_room(length: int, new: int, reading: Processing, place: str) -> None:
    positions, key = reading.positions, "task.generate.max_new_tokens"
    if positions is None:
        return
    if reading.config.is_encoder_decoder:
        if new > positions:
            raise ConfigError(f"must be at most {positions}, the decoder's positions; got {new}.", where=key)
    elif length + new > positions:
        raise ConfigError(
            f"is {new}, and the prompt of {place} has {length} tokens: more than the model's {positions} positions.",
            where=key,
            fix=f"Set it to {positions - length} or less." if length < positions else "Leave that row out.",
        )
