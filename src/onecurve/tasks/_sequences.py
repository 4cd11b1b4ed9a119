"""What tasks share whose examples hold several texts, each a sequence of its own to the model."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from onecurve.tasks import base
from onecurve.tasks._padding import pad_text
from onecurve.tasks.base import Batch, Example, Processing, reads_last_position

if TYPE_CHECKING:
    from torch import Tensor


class SequencesTask(base.Task):
    """A task whose examples have `input_ids` of several sequences, one after another, and the `lengths` of each."""

    def without_effect(self, reading: Processing | None = None) -> Mapping[str, str]:
        return {**base.NO_TEXT_OUT, "train.micro_batch_tokens": "this task's examples hold several sequences each"}

    def length(self, example: Example) -> int:
        return max(example["lengths"])

    def num_tokens(self, example: Example) -> int:
        return len(example["input_ids"])

    def tokenized(self, texts: Iterable[str | tuple[str, str]], reading: Processing, truncate: bool) -> Example:
        """Return the sequences of an example: each of a text, or of a pair that the model reads together."""
        limit = {"truncation": True, "max_length": reading.max_length} if truncate else {"truncation": False}
        # verbose=False: what happens to a long example is the caller's to decide and to report
        found = [
            reading.tokenizer(*((text,) if isinstance(text, str) else text), verbose=False, **limit) for text in texts
        ]
        ids = [one["input_ids"] for one in found]
        example: Example = {"input_ids": [*chain.from_iterable(ids)], "lengths": [len(sequence) for sequence in ids]}
        types = [*chain.from_iterable(one.get("token_type_ids") or () for one in found)]
        return example | ({"token_type_ids": types} if any(types) else {})

    def collate(self, examples: Sequence[Example], reading: Processing) -> Batch:
        """Pad to `input_ids`, `attention_mask`, and `token_type_ids` where there are any.

        Each int64 [examples, sequences, longest]; a sequence that an example does not have is masked throughout.
        """
        apart = [sequences(example) for example in examples]
        flat = pad_text(
            [sequence for own in apart for sequence in own],
            reading.tokenizer.pad_token_id,
            reads_last_position(reading.config),
        )
        return {name: by_example(tensor, [len(own) for own in apart]) for name, tensor in flat.items()}


def sequences(example: Example) -> list[Example]:
    """Return each sequence of an example as an example of its own."""
    found: list[Example] = []
    names, start = [name for name in ("input_ids", "token_type_ids") if name in example], 0
    for length in example["lengths"]:
        found.append({name: example[name][start : start + length] for name in names})
        start += length
    return found


def by_example(rows: "Tensor", counts: Sequence[int]) -> "Tensor":
    """Return rows, of which each example has so many, as [examples, most of an example, ...], zero where it has fewer.

    Args:
        rows: [sum of counts, ...].
        counts: Of each example.
    """
    import torch

    filled = rows.new_zeros((len(counts) * max(counts), *rows.shape[1:]))
    places = [number * max(counts) + place for number, count in enumerate(counts) for place in range(count)]
    return filled.index_copy(0, torch.tensor(places), rows).unflatten(0, (len(counts), max(counts)))


def each_sequence(batch: Batch) -> "tuple[dict[str, Tensor], Tensor, tuple[int, int]]":
    """Return what a model reads of a batch, a row a sequence, without those that an example does not have.

    Returns:
        The model's inputs, each [sequences, longest]; the place of each sequence in the flattened batch, int64; and the
        batch's (examples, most sequences of one).
    """
    import torch

    from onecurve.machine.accelerator import on_host, to_device

    mask = batch["attention_mask"]
    there = on_host(mask).any(-1).flatten()  # asked of the device, the host would wait
    places = to_device(torch.nonzero(there)[:, 0], mask.device)
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: batch[name].flatten(0, 1).index_select(0, places) for name in names if name in batch}
    return inputs, places, (mask.shape[0], mask.shape[1])


def put_back(rows: "Tensor", places: "Tensor", shape: tuple[int, int]) -> "Tensor":
    """Return what a model made of each sequence as [examples, sequences, ...], zero where there is none.

    Args:
        rows: [sequences, ...].
        places: Of each sequence, as `each_sequence` says.
        shape: The batch's.
    """
    filled = rows.new_zeros((shape[0] * shape[1], *rows.shape[1:]))
    return filled.index_copy(0, places, rows).unflatten(0, shape)


def pool_tokens(hidden: "Tensor", mask: "Tensor", pooling: str) -> "Tensor":
    """Return a vector for each sequence: float32 [sequences, size].

    Args:
        hidden: float32 [sequences, longest, size].
        mask: 1 where a token is: int64 [sequences, longest].
        pooling: mean, cls (the first), or last.
    """
    import torch

    if pooling == "mean":
        # Products and sums alone: autocast leaves these in float32, under every strategy
        there = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * there).sum(1) / there.sum(1)
    first = mask.argmax(1)  # 0 where padding is on the right
    place = first if pooling == "cls" else first + mask.sum(1) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), place]
