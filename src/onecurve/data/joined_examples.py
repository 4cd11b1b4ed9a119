"""The examples of several sources, one after the other: of rows, of encoded shards, or of both."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onecurve.data.checking import Report
from onecurve.data.examples import Examples
from onecurve.data.shard import Shard
from onecurve.data.shards import ShardedExamples


def joined_examples(parts: Sequence[Examples | ShardedExamples]) -> Examples | ShardedExamples:
    """Return the examples of all parts; where one is shards, the examples of rows count as a shard of their own.

    As many shards may be open as all parts may have open together.
    """
    if rows := [part.folder for part in parts if isinstance(part, Examples)]:
        if len(rows) == len(parts):
            return Examples(*rows)
    shards: list[Shard] = []
    held: int | None = 0
    stage_to = next((part.stage_to for part in parts if isinstance(part, ShardedExamples)), None)
    for part in parts:
        if isinstance(part, ShardedExamples):
            shards += [replace(shard, name=str((part.folder / shard.name).absolute())) for shard in part.shards]
            held = None if held is None or part.held is None else held + part.held
        else:
            shards.append(Shard.of(part.folder, str(part.folder.absolute()), 0, Report(), hashed=False))
            held = None if held is None else held + 1
    return ShardedExamples(Path(), shards, held, stage_to)  # a path joined to an absolute one is that one
