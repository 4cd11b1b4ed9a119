"""The completions of each step on disk, in a run's folder: to look at, to go on with, and to replay elsewhere."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from onecurve.content.completions import Completion
from onecurve.data.plan import Step
from onecurve.errors import ConfigError, TrainingError
from onecurve.machine.atomic_write import write_atomically
from onecurve.tasks._rollout_settings import RECORDS, recorded
from onecurve.tasks.base import Example

_BYTES_A_TOKEN, _BYTES_OF_REFERENCE, _BYTES_A_COMPLETION = 25, 14, 200
"""What a token takes (its id, log-probability and text), what the reference says of it, and what stands around them."""


def most_bytes(tokens: int, count: int, has_reference: bool) -> int:
    """Return about how many bytes a step's record takes at most.

    Args:
        tokens: The most of a completion.
        count: Completions of a step.
        has_reference: Whether a reference says something of each token.
    """
    return count * (tokens * (_BYTES_A_TOKEN + _BYTES_OF_REFERENCE * has_reference) + _BYTES_A_COMPLETION)


class Records:
    """A file a step: a line on the step, then one for each completion, groups together, in plan order."""

    def __init__(self, run: Path) -> None:
        self.folder = run / RECORDS

    def has(self, step: int) -> bool:
        """Whether there are completions of a step."""
        return self._path(step).is_file()

    def write(self, step: Step, prompts: Sequence[Example], completions: Sequence[Completion]) -> None:
        """Write a step's completions.

        Raises:
            TrainingError: They cannot be written.
        """
        ids = np.repeat(step.sample_ids, len(completions) // len(step.sample_ids)).tolist()
        lines: list[dict[str, Any]] = [{"step": step.number, "prompts": _digest(prompts), "count": len(completions)}]
        for number, one in zip(ids, completions, strict=True):
            lines.append({"example": number, **asdict(one)})
        try:
            self.folder.mkdir(exist_ok=True)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_atomically(self._path(step.number), text)
        except OSError as error:
            raise TrainingError(f"'{self._path(step.number)}' cannot be written: {error.strerror}.") from None

    def read(self, step: Step, prompts: Sequence[Example], names: Sequence[str], where: str) -> list[Completion]:
        """Return a step's completions.

        Args:
            step: The step.
            prompts: Of each completion.
            names: The reward functions.
            where: The setting that asks for them.

        Raises:
            ConfigError: There are none, or they are of other prompts or rewards.
        """
        path = self._path(step.number)
        try:
            # Not splitlines: a text may have separators of its own, which JSON leaves as they are
            head, *lines = map(json.loads, path.read_text(encoding="utf-8").rstrip("\n").split("\n"))
            count, digest = head["count"], head["prompts"]
            completions = [Completion(**{k: v for k, v in line.items() if k != "example"}) for line in lines]
            if len(completions) != count:
                raise ValueError(count)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{str(path)!r} is missing, cut short or cannot be read.", where=where) from None
        if count != len(prompts) or digest != _digest(prompts):
            raise ConfigError(
                f"{str(path)!r} has completions of other prompts than this run has in step {step.number}.",
                where=where,
                fix="data, seed, train.global_batch_size and task.completions must be those of the run that drew them.",
            )
        if completions and sorted(completions[0].rewards) != sorted(names):
            raise ConfigError(
                f"{str(path)!r} has rewards of {', '.join(completions[0].rewards)}, and this run asks for "
                f"{', '.join(names)}.",
                where=where,
            )
        return completions

    def remove_after(self, step: int) -> None:
        """Remove what an earlier run, or one that went back, left of the steps after this one.

        Raises:
            TrainingError: A file cannot be removed.
        """
        for number, path in recorded(self.folder).items():
            if number > step:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise TrainingError(f"'{path}' cannot be removed: {error.strerror}.") from None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.jsonl"


def _digest(prompts: Sequence[Example]) -> str:
    return blake2b(json.dumps([prompt["input_ids"] for prompt in prompts]).encode(), digest_size=8).hexdigest()
