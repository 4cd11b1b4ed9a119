"""Downloads and prepares what a run reads, so that the run works without a network."""

from collections.abc import Iterator
from pathlib import Path

from onecurve.adapters import check_adapter, continued_by
from onecurve.data import Data, load_data
from onecurve.data.cache import cache_root
from onecurve.errors import ConfigError
from onecurve.machine.hub import reachable
from onecurve.model.reading import Reading
from onecurve.preflight import Checked
from onecurve.tasks.base import Annotates

_READING = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")
"""A model's config, its tokenizer, its chat template, and its own code, which is run only if it is trusted."""
_WEIGHTS = (".safetensors", ".bin")
"""File patterns of weights, in transformers' order of preference."""


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
    reading = Reading.of(recipe, checked.task)
    data = load_data(recipe.data, checked.task, reading, recipe.seed)
    yield from _examples(data, cache_root(recipe.data.cache_dir))


def _fetch(what: str, name: str, revision: str | None, weights: bool) -> str:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return f"{what}: found {folder.resolve()}, {_size(folder)}"
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    online = reachable()
    try:
        wanted = [*_READING, *(_weight_files(name, revision) if weights and online else ())]
        copy = snapshot_download(name, revision=revision or "main", allow_patterns=wanted, local_files_only=not online)
    except HFValidationError:
        raise ConfigError(f"{name!r} is neither a folder nor a hub name.", where=f"model ({what})") from None
    except FileNotFoundError:
        raise ConfigError(
            f"the {what} {name!r} is not in the local cache, and the hub cannot be reached.",
            where="model",
            fix="Run this on a machine with a network, or use a local folder.",
        ) from None
    except HfHubHTTPError as error:
        raise ConfigError(
            f"the {what} {name!r} cannot be fetched: {str(error).strip().splitlines()[0]}", where="model"
        ) from None
    if weights and not any(Path(copy).glob("*" + suffix) for suffix in _WEIGHTS):
        raise ConfigError(f"{name!r} has no {' or '.join(_WEIGHTS)} files{' here' * (not online)}.", where="model")
    return f"{what}: {'fetched' if online else 'found'} {name} in {copy}, {_size(Path(copy))}"


def _weight_files(name: str, revision: str | None) -> list[str]:
    """List the weight files that transformers would load: safetensors where there are any."""
    from huggingface_hub import list_repo_files

    names = [file for file in list_repo_files(name, revision=revision) if "/" not in file]
    for suffix in _WEIGHTS:
        if found := [file for file in names if file.endswith(suffix)]:
            return found
    return []


def _examples(data: Data, root: Path) -> Iterator[str]:
    for split in data.parts:
        folder = split.examples.folder
        tokens = int(split.num_tokens.sum())
        yield f"{split.name}: {len(split):,} examples, {tokens:,} tokens, {_size(folder)} in {folder}"
    yield f"examples: {'all found' if data.cached else 'encoded'} in {root}"


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / 1e6:,.1f} MB"
