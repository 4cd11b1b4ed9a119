"""Encoded examples on disk: written in batches, read from a memory map by number."""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from onecurve.tasks.base import Example

ROW = "row"
"""The key under which an example may carry the number of the row that it came from; kept, and not read back with it."""
_LENGTH, _TOKENS = "length", "num_tokens"
_BATCH_EXAMPLES = 1000
_BATCH_TOKENS = 1 << 20
_Getter = Callable[[int], Any]
Measure = Callable[[Example], tuple[int, int]]
"""Says how long an example is, and how many tokens it costs."""


def write_examples(folder: Path, examples: Iterable[Example], measure: Measure) -> int:
    """Write examples to Arrow files in a folder and return how many; none writes no file.

    A key that only some examples have is stored as null in the others. Lists of integers are stored as int32.
    """
    return write_batches(folder, record_batches(examples, measure))


def write_batches(folder: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Write what `record_batches` made to Arrow files in a folder and return how many examples that is."""
    count = 0
    writer: pa.ipc.RecordBatchFileWriter | None = None
    schema = pa.schema([])
    try:
        for number, batch in enumerate(batches):
            merged = pa.unify_schemas([schema, batch.schema], promote_options="permissive")
            if writer is None or merged != schema:  # a file has one schema: where more is known, the next one begins
                if writer is not None:
                    writer.close()
                schema = merged
                writer = pa.ipc.new_file(str(folder / f"examples-{number:06d}.arrow"), schema)
            columns, nothing = dict(zip(batch.schema.names, batch.columns, strict=True)), pa.nulls(len(batch))
            arrays = [columns.get(field.name, nothing).cast(field.type) for field in schema]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            count += len(batch)
    finally:
        if writer is not None:
            writer.close()
    return count


def record_batches(examples: Iterable[Example], measure: Measure) -> Iterator[pa.RecordBatch]:
    """Turn examples into Arrow's columns, in batches of bounded size."""
    for batch in _batches(examples, measure):
        columns = {name: _column([example.get(name) for example in batch]) for name in _keys(batch)}
        yield pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _column(values: list[Any]) -> pa.Array:
    """Return what `pa.array` infers, with lists of integers narrowed to int32.

    Integers and lists of them, which is most of an example, come by Python's own arrays: twice as fast, and `pa.array`
    imports pandas, which takes half a second.
    """
    try:
        if type(values[0]) is int:
            return _numbers(pa.int64(), array("q", values))
        if type(values[0]) is list:
            flat, ends = array("q"), array("i", accumulate(map(len, values), initial=0))
            for value in values:
                flat.fromlist(value)
            numbers = _numbers(pa.int64(), flat).cast(pa.int32()) if flat else pa.nulls(0)
            return pa.ListArray.from_arrays(_numbers(pa.int32(), ends), numbers)
    except (TypeError, OverflowError):  # not all are integers that fit
        pass
    # Inferred and then cast: tenfold faster than asking for int32, which would also cut 1.5 to 1
    column = pa.array(values)
    return column.cast(_narrow(column.type))


def _numbers(kind: pa.DataType, values: "array[int]") -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _batches(examples: Iterable[Example], measure: Measure) -> Iterator[list[Example]]:
    batch: list[Example] = []
    tokens = 0
    for example in examples:
        assert not {_LENGTH, _TOKENS} & example.keys(), f"the keys '{_LENGTH}' and '{_TOKENS}' are the cache's own"
        length, num_tokens = measure(example)
        batch.append({**example, _LENGTH: length, _TOKENS: num_tokens})
        tokens += num_tokens
        if len(batch) == _BATCH_EXAMPLES or tokens >= _BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def _keys(batch: list[Example]) -> dict[str, None]:
    """Return every key, each once and in the order met."""
    return {key: None for example in batch for key in example}


def _narrow(kind: pa.DataType) -> pa.DataType:
    if not pa.types.is_list(kind):
        return kind
    inner = kind.value_type
    return pa.list_(pa.int32() if inner == pa.int64() else _narrow(inner))


class Examples:
    """The examples of one folder, as they were written; or of several, one after the other."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self._getters: dict[int, dict[str, _Getter]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Travel to a worker process as the paths alone, which maps the files again."""
        return {"folders": self.folders, "_getters": {}}

    @property
    def folder(self) -> Path:
        """The folder, where it is one."""
        (folder,) = self.folders
        return folder

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        row = int(index) - (self._ends[number - 1] if number else 0)
        values = ((name, get(row)) for name, get in self._batch(number).items())
        return {name: value for name, value in values if value is not None}

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self._files)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Length of each example's longest sequence: int32 [examples]."""
        return self._column(_LENGTH)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Tokens that a model computes for each example, without padding: int32 [examples]."""
        return self._column(_TOKENS)

    @cached_property
    def rows(self) -> np.ndarray:
        """Number of the row that each example came from, from 0: int32 [examples]."""
        return self._column(ROW)

    @cached_property
    def num_items(self) -> np.ndarray:
        """Terms of the loss of each example: int32 [examples], or [examples, terms] where a task has several terms."""
        if not pa.types.is_list(self._batches[0].column("num_items").type):
            return self._column("num_items")
        rows = [_view(batch.column("num_items").values).reshape(len(batch), -1) for batch in self._batches]
        return np.concatenate(rows, dtype=np.int32, casting="same_kind")

    def counts(self, name: str, size: int) -> np.ndarray:
        """Count the values 0 to size - 1 of a key that holds whole numbers or lists of them: int64 [size]."""
        total = np.zeros(size, np.int64)
        for batch in self._batches:
            column = batch.column(name)
            values = _view(column.flatten() if pa.types.is_list(column.type) else column)
            total += np.bincount(values[(values >= 0) & (values < size)], minlength=size)
        return total

    def optional(self) -> list[int]:
        """Return, for each key that only some examples have, the first one with it and the first without."""
        return [number for first in self.presence().values() if len(first) > 1 for number in first.values()]

    def presence(self) -> dict[str, dict[bool, int]]:
        """Return, for each key, the first example that has it (True) and the first that has not (False), if there are.

        Those of one key are in the order in which they are met.
        """
        found: dict[str, dict[bool, int]] = {}
        for name in {name: None for batch in self._batches for name in batch.schema.names}:
            first = found[name] = {}
            for start, batch in zip([0, *self._ends], self._batches, strict=False):
                column = batch.column(name) if name in batch.schema.names else pa.nulls(len(batch))
                for state, count in ((False, column.null_count), (True, len(column) - column.null_count)):
                    if count and state not in first:
                        first[state] = start + column.is_valid().to_pylist().index(state)
        return found

    def short_and_middle(self) -> list[int]:
        """Return the shortest example, and one of middle length."""
        order = self.lengths.argsort(kind="stable")
        return [int(order[0]), int(order[len(order) // 2])]

    def longest(self, count: int) -> np.ndarray:
        """Return the longest examples, in the order of their lengths: int64 [count]."""
        return self.lengths.argsort(kind="stable")[-count:]

    def _column(self, name: str) -> np.ndarray:
        # Every rank holds a number for each example of the data: 4 bytes less of it
        columns = [_view(batch.column(name)) for batch in self._batches]
        return np.concatenate(columns, dtype=np.int32, casting="same_kind")

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        files = [pa.ipc.open_file(pa.memory_map(str(path))) for path in self._files]
        return [file.get_batch(number) for file in files for number in range(file.num_record_batches)]

    @property
    def _files(self) -> Iterator[Path]:
        return (path for folder in self.folders for path in sorted(folder.glob("*.arrow")))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(batch.num_rows for batch in self._batches))

    def _batch(self, number: int) -> dict[str, _Getter]:
        if number not in self._getters:
            batch = self._batches[number]
            names = [name for name in batch.schema.names if name not in (_LENGTH, _TOKENS, ROW)]
            self._getters[number] = {name: _getter(batch.column(name)) for name in names}
        return self._getters[number]


def _getter(column: pa.Array) -> _Getter:
    kind = column.type
    is_flat = pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))
    if not is_flat or column.null_count or column.values.null_count:
        return lambda row: column[row].as_py()
    # Views of the memory map: making a list from them is tenfold faster than Arrow's own as_py
    offsets, values = _view(column.offsets), _view(column.values)
    return lambda row: values[offsets[row] : offsets[row + 1]].tolist()


def _view(numbers: pa.Array) -> np.ndarray:
    return np.from_dlpack(numbers)  # Arrow's own to_numpy imports pandas: half a second at a run's start
