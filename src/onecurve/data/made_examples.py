"""Examples that a step makes, in memory, in place of those on disk."""

from collections.abc import Sequence

import numpy as np

from onecurve.data.examples import Examples
from onecurve.tasks.base import Example, Task


class MadeExamples(Examples):
    """Examples by number, as `Examples` has them."""

    def __init__(self, examples: Sequence[Example], rows: Sequence[int], task: Task) -> None:
        """Hold them; `rows` has the number of the row that each came from."""
        super().__init__()
        self.rows = np.array(rows, np.int32)
        self.held = list(examples)
        self.lengths = np.array([task.length(example) for example in examples], np.int32)
        self.num_tokens = np.array([task.num_tokens(example) for example in examples], np.int32)
        self.num_items = np.array([example["num_items"] for example in examples], np.int32)

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> Example:
        return self.held[index]
