"""Python code that comes with a model or tokenizer: run only where the recipe says so, and identified by a hash."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from onecurve.config import ModelSection
from onecurve.errors import ConfigError

_KEY = "model.trust_remote_code"
FLAG = "--trust_remote_code"
"""What a command has for it, which reads no recipe."""
_NEEDED = "requires you to execute", "contains custom code", "references custom code"


def is_refusal(error: Exception) -> bool:
    """Whether transformers refused to run code of a model's own."""
    return any(words in str(error) for words in _NEEDED)


def refuse_code(path: str, revision: str | None) -> ConfigError:
    """Return the error for a model or tokenizer that cannot be read without its own code, which is not trusted."""
    files = ", ".join(_files(path, revision)) or "Python code"
    return ConfigError(
        f"{path!r} needs code of its own ({files}), which runs only where it is trusted.",
        where=_KEY,
        fix="Read that code, then set model.trust_remote_code to true; or use a model that transformers has itself.",
    )


@contextmanager
def told_by_flag() -> Iterator[None]:
    """Have mistakes in a model section told in the words of a command, which has a flag and no recipe.

    Raises:
        ConfigError: Untrusted code, or trust in code that is not there: with the flag. Any other: without a key.
    """
    try:
        yield
    except ConfigError as error:
        if error.where == _KEY:
            fix = error.fix if "no effect" in error.what else f"Read that code, then give {FLAG}."
            raise ConfigError(error.what, where=FLAG, fix=fix.replace("Set it to false.", "Leave it out.")) from None
        if error.where.startswith("model."):
            raise ConfigError(error.what) from None
        raise


def check_trusted(section: ModelSection) -> None:
    """Refuse trust in code that is not there.

    Raises:
        ConfigError: Neither model nor tokenizer has code of its own.
    """
    if section.trust_remote_code and not any(_files(path, revision) for path, revision in _places(section)):
        raise ConfigError(
            "has no effect: neither model nor tokenizer has code of its own.", where=_KEY, fix="Set it to false."
        )


def check_flag(section: ModelSection, given: bool) -> None:
    """Have a command run the code that a run trusted only where it is told to.

    Raises:
        ConfigError: It is not told to, or the run trusted none.
    """
    if section.trust_remote_code and not given:
        raise refuse_code(section.path, section.revision)
    if given:
        check_trusted(section.model_copy(update={"trust_remote_code": True}))


def code_identity(section: ModelSection) -> str:
    """Hash the code that the recipe trusts: a local folder's Python files, a hub repository's commit.

    Returns:
        Hexadecimal; empty where no code is trusted.
    """
    if not section.trust_remote_code:
        return ""
    digest = blake2b(digest_size=16)
    for path, revision in _places(section):
        folder = Path(path).expanduser()
        for file in sorted(folder.rglob("*.py")) if folder.is_dir() else ():
            content = file.read_bytes()
            digest.update(f"{file.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
        if not folder.is_dir():
            digest.update(f"{path}@{_commit(path, revision)} ".encode())
    return digest.hexdigest()


def _places(section: ModelSection) -> list[tuple[str, str | None]]:
    own = [(section.tokenizer, section.tokenizer_revision)] if section.tokenizer else []
    return [(section.path, section.revision), *own]


def _files(path: str, revision: str | None) -> list[str]:
    """Return the Python files whose classes the configs of a model and its tokenizer name."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    told = get_tokenizer_config(path, revision=revision or "main")
    try:
        config, _ = PreTrainedConfig.get_config_dict(path, revision=revision or "main")
    except OSError:  # a tokenizer alone
        config = {}
    names = [name for part in (config, told) for name in _names(part.get("auto_map"))]
    return sorted({f"{name.rpartition('.')[0]}.py" for name in names})


def _names(value: Any) -> list[str]:
    """Return the class names in an `auto_map`, whose values are names, or lists of them and null."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value or ()
    return [name for part in parts for name in _names(part)]


def _commit(path: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=["*.json"], local_files_only=True)).name
