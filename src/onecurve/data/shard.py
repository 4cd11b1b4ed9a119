"""What is known of one encoded shard."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onecurve.data.checking import Report
from onecurve.data.examples import Examples
from onecurve.data.files import content_digest


@dataclass(frozen=True)
class Shard:
    """What the index says of one shard, which is a folder as `Examples` reads it."""

    name: str
    rows: int
    """Usable rows that it was made from."""
    examples: int
    num_tokens: int
    num_items: int | list[int]
    """Sum over its examples; of a task with several terms, of each."""
    shortest: list[int]
    """Length, and number in the shard, of its shortest example; of several, the first."""
    longest: list[int]
    presence: dict[str, list[int | None]]
    """Key of its examples -> the first that has it, and the first that has not."""
    files: dict[str, list[Any]]
    """File -> its bytes and their hash."""
    report: dict[str, Any]
    """What became of its rows when they were encoded."""

    @classmethod
    def of(cls, folder: Path, name: str, rows: int, report: Report, hashed: bool = True) -> "Shard":
        """Describe what lies in a folder; unless `hashed`, without its files."""
        examples = Examples(folder)
        lengths, presence = examples.lengths, examples.presence()
        least, most = int(lengths.argmin()), int(lengths.argmax())
        files = sorted(folder.glob("*.arrow")) if hashed else []
        return cls(
            name,
            rows,
            len(examples),
            int(examples.num_tokens.sum(dtype=np.int64)),
            examples.num_items.sum(0, dtype=np.int64).tolist(),
            [int(lengths[least]), least],
            [int(lengths[most]), most],
            {key: [first.get(True), first.get(False)] for key, first in presence.items()},
            {path.name: [path.stat().st_size, content_digest([path], "")] for path in files},
            asdict(report),
        )
