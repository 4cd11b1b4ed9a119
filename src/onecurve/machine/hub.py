"""The Hugging Face hub: whether it can be reached, checked once within seconds, and copies of its models."""

import http.client
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from onecurve.errors import ConfigError, NotCached

_TIMEOUT_SECONDS = 5
_READING = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")
"""A model's config, its tokenizer, its chat template, and its own code, which is run only if it is trusted."""
_WEIGHTS = (".safetensors", ".bin")
"""File patterns of weights, in transformers' order of preference."""


@cache
def reachable() -> bool:
    """Ask the hub; where it does not answer, switch upstream to its local copies instead of a minute of retries."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return True


def fetched(name: str, revision: str | None, weights: bool = True, what: str = "model") -> Path:
    """Return the folder with a hub model's files, fetched where the hub can be reached.

    Args:
        name: Of the model.
        revision: Default: main.
        weights: Whether its weights are wanted too.
        what: What messages call it.

    Raises:
        ConfigError: It is neither here nor to be had.
    """
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
    return Path(copy)


def file_of(name: str, revision: str | None, path: str) -> Path | None:
    """Return a small file of a hub's model, fetched where the hub can be reached.

    Args:
        name: Of the model.
        revision: Default: main.
        path: Of the file, within the repository.

    Returns:
        None: the repository has none, or is not to be had, which is told when the model's config is read.

    Raises:
        NotCached: Other files of the model are here, and nothing here says whether it has this one.
        ConfigError: It cannot be fetched or written.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    revision = revision or "main"
    try:
        if reachable():
            return Path(hf_hub_download(name, path, revision=revision))
        found, config = (try_to_load_from_cache(name, file, revision=revision) for file in (path, "config.json"))
    except (HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"{path} of {name!r} cannot be fetched: {line}", where="model.path") from None
    if found is None and isinstance(config, str):
        raise NotCached(
            f"of {name!r} the config is in the local cache, but not whether it has a {path}, and the hub cannot be "
            "reached.",
            where="model.path",
            fix="Run `onecurve data stage RECIPE` where there is a network, or name a local folder.",
        )
    return Path(found) if isinstance(found, str) else None


def _weight_files(name: str, revision: str | None) -> list[str]:
    """List the weight files that transformers would load: safetensors where there are any."""
    from huggingface_hub import list_repo_files

    names = [file for file in list_repo_files(name, revision=revision) if "/" not in file]
    for suffix in _WEIGHTS:
        if found := [file for file in names if file.endswith(suffix)]:
            return found
    return []
