"""What a frozen model says of each example: computed once, before step 1, and from then on part of the data."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from onecurve.config import Recipe
from onecurve.data.cache import Entry, cache_root, find_entry, get_or_write
from onecurve.data.examples import Examples, write_examples
from onecurve.data.loader import Loader
from onecurve.data.plan import plan_scoring
from onecurve.data.splits import Data, Split
from onecurve.machine.latest import follow
from onecurve.model.attention_kernels import fastest_attention
from onecurve.model.reference import Reference
from onecurve.ranks.heartbeat import beat
from onecurve.run.directory import RunDirectory
from onecurve.strategies.base import Strategy
from onecurve.tasks.base import Annotates, Processing, Task

FOLDER = "annotations"
"""Folder of a run directory with what the run's reference said: a run that goes on elsewhere has just these numbers."""
_LAYOUT = 1
"""Raised whenever what is stored, or how, changes."""


def annotated(
    data: Data,
    task: Task,
    recipe: Recipe,
    directory: RunDirectory,
    strategy: Strategy,
    reading: Processing,
    accelerator: Accelerator,
) -> Data:
    """Return the data with what the reference says of each example; every rank calls it.

    What is known already is read: from this run's directory, from that of the run it continues, or from the cache.
    Every rank reads the file that rank 0 chose, so all have the same numbers. Named sources and sets are kept apart,
    so that another mixture of them asks the reference nothing again.

    Args:
        data: The run's.
        task: Says whether there is anything to annotate.
        recipe: The run.
        directory: Keeps the annotations.
        strategy: Has the model as it stands before step 1.
        reading: Made the examples.
        accelerator: The device, and the other ranks.

    Raises:
        ConfigError: The reference cannot be loaded, or has another vocabulary.
        LaunchError: Nothing can be written.
    """
    if not isinstance(task, Annotates) or not task.annotations:
        return data
    reference = Reference(task.reference_model, recipe, strategy, reading, accelerator)
    identity = _digest(reference.identity())
    store = _Store(directory.path / FOLDER, _elsewhere(recipe), cache_root(recipe.data.cache_dir))
    loaders = {_key(identity, part, task): Loader(part, task, reading, accelerator) for part in data.parts}
    missing = [[key for key in loaders if accelerator.is_main_process and not store.take(key)]]
    (missing_keys,) = broadcast_object_list(missing) if accelerator.num_processes > 1 else missing
    if missing_keys:
        with reference.loaded(task) as (model, autocast):
            for key in missing_keys:
                found = _annotate(loaders[key], task, recipe, model, autocast)
                if accelerator.is_main_process:
                    store.keep(key, found, {"split": loaders[key].split.name, "task": type(task).__module__})
    accelerator.wait_for_everyone()

    def with_annotations(split: Split) -> Split:
        said = Examples(*(store.run / _key(identity, part, task) for part in split.parts))
        assert len(said) == len(split), (split.name, len(said), len(split))
        return replace(split, annotations=said, sets=tuple(map(with_annotations, split.sets)))

    return replace(
        data,
        train=with_annotations(data.train),
        eval=None if data.eval is None else with_annotations(data.eval),
        test=None if data.test is None else with_annotations(data.test),
        reference=identity,
    )


def _annotate(
    loader: Loader, task: Annotates, recipe: Recipe, model: Any, autocast: Callable[[], AbstractContextManager[Any]]
) -> list[dict[str, Any]]:
    """Return what a model says of each example of a split, in their order; nothing on ranks other than 0."""
    step = plan_scoring(loader.split, recipe)
    pairs: list[tuple[int, dict[str, Any]]] = []
    model.eval()
    with torch.no_grad(), fastest_attention(loader.accelerator.device):
        for micro_batch in loader.micro_batches(step):
            beat("annotation")
            with autocast():
                outputs = loader.task.forward(model, micro_batch.batch)
            if micro_batch.counts:
                said = task.annotate(outputs, micro_batch.batch)
                numbers = step.micro_batches[micro_batch.position].tolist()
                rows = (dict(zip(said, values, strict=True)) for values in zip(*said.values(), strict=True))
                pairs += zip(numbers, rows, strict=True)
            del outputs
    found = dict(_on_main(pairs, loader.accelerator))
    assert not loader.accelerator.is_main_process or len(found) == len(loader.split), (len(found), len(loader.split))
    return [found[number] for number in sorted(found)]


def _on_main(own: list[Any], accelerator: Accelerator) -> list[Any]:
    """Return the lists of all ranks as one, on rank 0; no other rank has to hold what a teacher says of everything."""
    if accelerator.num_processes == 1:
        return own
    of_ranks: list[list[Any]] | None = [[]] * accelerator.num_processes if accelerator.is_main_process else None
    torch.distributed.gather_object(own, of_ranks)
    return [one for part in of_ranks or () for one in part]


def _key(identity: str, part: Split, task: Annotates) -> str:
    """Return the name of a split's annotations: what the reference is, and what it was asked."""
    asked = {
        "layout": _LAYOUT,
        "examples": part.examples.folder.name,
        "task": type(task).__module__,
        "names": sorted(task.annotations),
        "version": task.annotator_version,
    }
    return f"{identity}-{_digest(asked)}"


def _size(example: dict[str, Any]) -> int:
    """Return how many numbers an example's annotations are: so much is written at a time, and no more."""
    return sum(len(value) // 4 for value in example.values() if isinstance(value, bytes))


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


def _elsewhere(recipe: Recipe) -> Path | None:
    """Return the annotations of the run whose checkpoint `train.resume` names."""
    if recipe.train.resume in ("auto", "never"):
        return None
    return follow(Path(recipe.train.resume)).resolve().parent.parent / FOLDER


@dataclass(frozen=True)
class _Store:
    """Where annotations are kept; rank 0 uses it."""

    run: Path
    continued: Path | None
    cache: Path

    def take(self, key: str) -> bool:
        """Have the run's directory hold an entry that is known; whether there is one."""
        if find_entry(self.run, key):
            return True
        for root in filter(None, (self.continued, self.cache)):
            if entry := find_entry(root, key):
                self._copy(entry)
                return True
        return False

    def keep(self, key: str, found: list[dict[str, Any]], about: dict[str, str]) -> None:
        """Write what was found to the cache and to the run's directory."""

        def write(folder: Path) -> dict[str, Any]:
            return {"examples": write_examples(folder, found, lambda example: (0, _size(example)))}

        self._copy(get_or_write(self.cache, key, write, about | {"data": "annotations"}))

    def _copy(self, entry: Entry) -> None:
        def copy(folder: Path) -> dict[str, Any]:
            for path in entry.folder.glob("*.arrow"):
                shutil.copyfile(path, folder / path.name)
            return entry.counts

        get_or_write(self.run, entry.folder.name, copy, {})
