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
from accelerate.utils import broadcast_object_list, gather_object

from onecurve.config import Recipe
from onecurve.data.cache import Entry, cache_root, find_entry, get_or_write
from onecurve.data.examples import Examples, write_examples
from onecurve.data.loader import Loader
from onecurve.data.plan import plan_scoring
from onecurve.data.splits import Data
from onecurve.evaluation.reference import Reference
from onecurve.machine.latest import follow
from onecurve.model.attention_kernels import fastest_attention
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
) -> tuple[Data, dict[str, Loader]]:
    """Return the data with what the reference says of each example, and a loader for each split; by every rank.

    What is known already is read: from this run's directory, from that of the run it continues, or from the cache.
    Every rank reads the file that rank 0 chose, so all have the same numbers.

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
    loaders = {split.name: Loader(split, task, reading, accelerator) for split in data.splits}
    if not isinstance(task, Annotates) or not task.annotations:
        return data, loaders
    reference = Reference(task.reference_model, recipe, strategy, reading, accelerator)
    store = _Store(directory.path / FOLDER, _elsewhere(recipe), cache_root(recipe.data.cache_dir))
    keys = {name: _key(loader, task, reference) for name, loader in loaders.items()}
    missing = [[name for name, key in keys.items() if accelerator.is_main_process and not store.take(key)]]
    (missing_names,) = broadcast_object_list(missing) if accelerator.num_processes > 1 else missing
    if missing_names:
        with reference.loaded(task) as (model, autocast):
            for name in missing_names:
                found = _annotate(loaders[name], task, recipe, model, autocast)
                if accelerator.is_main_process:
                    store.keep(keys[name], found, {"split": name, "task": type(task).__module__})
    accelerator.wait_for_everyone()
    kept = {name: Examples(store.run / key) for name, key in keys.items()}
    for name, loader in loaders.items():
        assert len(kept[name]) == len(loader.split), (len(kept[name]), len(loader.split))
    splits = {name: replace(loader.split, annotations=kept[name]) for name, loader in loaders.items()}
    return replace(data, **splits), {name: Loader(split, task, reading, accelerator) for name, split in splits.items()}


def _annotate(
    loader: Loader, task: Annotates, recipe: Recipe, model: Any, autocast: Callable[[], AbstractContextManager[Any]]
) -> list[dict[str, Any]]:
    """Return what a model says of each example of a split, in their order; on every rank."""
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
    found = dict(gather_object(pairs))
    assert len(found) == len(loader.split), (len(found), len(loader.split))
    return [found[number] for number in sorted(found)]


def _key(loader: Loader, task: Annotates, reference: "Reference") -> str:
    """Return the name of a split's annotations: what the reference is, and what it was asked."""
    asked = {
        "layout": _LAYOUT,
        "examples": loader.split.examples.folder.name,
        "task": type(task).__module__,
        "names": sorted(task.annotations),
        "version": task.annotator_version,
    }
    return f"{_digest(reference.identity())}-{_digest(asked)}"


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
            return {"examples": write_examples(folder, found, lambda _: (0, 0))}

        self._copy(get_or_write(self.cache, key, write, about | {"data": "annotations"}))

    def _copy(self, entry: Entry) -> None:
        def copy(folder: Path) -> dict[str, Any]:
            for path in entry.folder.glob("*.arrow"):
                shutil.copyfile(path, folder / path.name)
            return entry.counts

        get_or_write(self.run, entry.folder.name, copy, {})
