"""Downloads and prepares what a run reads, so that the run works without a network."""

from collections.abc import Iterator
from pathlib import Path

from onecurve.adapters import check_adapter, continued_by
from onecurve.adapters.folder import Continued, is_adapter
from onecurve.data import Data, load_data
from onecurve.data.cache import cache_root
from onecurve.machine.hub import fetched, reachable
from onecurve.model.reading import Reading
from onecurve.preflight import Checked
from onecurve.tasks.base import Annotates, RollsOut


def stage(checked: Checked) -> Iterator[str]:
    """Fetch a run's model, tokenizer and data, encode the examples, and yield one line about each.

    Local files are not copied. The precision is not checked: the run may use another machine.

    Raises:
        UserError: Any mistake that train.py would report, or a file that is neither local nor available from the hub.
    """
    recipe = checked.recipe
    check_adapter(recipe.peft)
    section, continued = recipe.model, continued_by(recipe)
    if continued:
        yield f"adapter: found {continued.folder}, {_size(continued.folder)}"
        section = section.model_copy(update={"path": continued.base, "revision": continued.revision})
    yield _fetch("model", section.path, section.revision, weights=section.init == "pretrained")
    if section.tokenizer:
        yield _fetch("tokenizer", section.tokenizer, section.tokenizer_revision, weights=False)
    other = checked.task.reference_model if isinstance(checked.task, Annotates) else None
    if other:
        yield _fetch("reference", other.path, other.revision, weights=True)
    for judge in checked.task.reward_models.values() if isinstance(checked.task, RollsOut) else ():
        yield _fetch("reward model", judge.path, judge.revision, weights=True)
        if is_adapter(judge.path):
            below = Continued.read(judge.path)
            yield _fetch("reward model's base", below.base, below.revision, weights=True)
    reading = Reading.of(recipe, checked.task)
    settings = recipe.data.model_copy(update={"stage_to": None})  # a folder of the machine that trains
    data = load_data(settings, checked.task, reading, recipe.seed)
    yield from _examples(data, cache_root(recipe.data.cache_dir))


def _fetch(what: str, name: str, revision: str | None, weights: bool) -> str:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return f"{what}: found {folder.resolve()}, {_size(folder)}"
    copy = fetched(name, revision, weights, what)
    return f"{what}: {'fetched' if reachable() else 'found'} {name} in {copy}, {_size(copy)}"


def _examples(data: Data, root: Path) -> Iterator[str]:
    for split in data.parts:
        folder = split.examples.folder
        tokens = int(split.num_tokens.sum())
        yield f"{split.name}: {len(split):,} examples, {tokens:,} tokens, {_size(folder)} in {folder}"
    yield f"examples: {'all found' if data.cached else 'encoded'} in {root}"


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:,.1f} MB"
