"""What an adapter's folder says of its base, and where that base lies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecurve.errors import ConfigError

BASE = "base"
"""The folder in an adapter's folder that stands for its base."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers loads: the first there is."""
CONFIG = "adapter_config.json"
_OF_THE_RUN = {"base_model_name_or_path", "inference_mode", "peft_type", "revision", "task_type"}
"""Fields of adapter_config.json that describe where it was made, not the method."""


def is_adapter(path: str | Path) -> bool:
    """Whether a PEFT adapter lies there; a hub name is none."""
    return (Path(path).expanduser() / CONFIG).is_file()


def described_in(folder: Path) -> Path:
    """Return the folder with the config of a model folder: an adapter's `base/`, or the folder itself."""
    own = folder / BASE
    return own if (own / "config.json").is_file() else folder


def base_of(folder: Path, peft_config: Any) -> str:
    """Return what an adapter's base is loaded from: the folder's `base/` while its links hold, else the base itself."""
    name = str(peft_config.base_model_name_or_path)
    for link in (folder / BASE / file for file in WEIGHTS):
        if link.exists():
            return str(folder / BASE)
        if link.is_symlink() and Path(name).name == BASE:
            return str(link.readlink().parent)
    return name


@dataclass(frozen=True)
class Continued:
    """An adapter that a run trains further, as its folder describes it."""

    folder: Path
    method: str
    settings: dict[str, Any]
    """Of its method, as PEFT saved them."""
    base: str
    """Folder or hub name of its base: the base itself where that is known, not this folder's links to it."""
    revision: str | None
    """Of the hub's repository."""
    task_type: str | None = None
    """PEFT's name for the kind of model, such as SEQ_CLS."""

    @classmethod
    def read(cls, path: str) -> "Continued":
        """Read an adapter's folder.

        Raises:
            ConfigError: It cannot be read, or its base is not there.
        """
        folder = Path(path).expanduser().resolve()
        try:
            told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            method, name = str(told["peft_type"]).lower(), str(told["base_model_name_or_path"] or "")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path!r} has no {CONFIG} that can be read: {error}.", where="model.path") from None
        settings = {key: value for key, value in told.items() if key not in _OF_THE_RUN}
        return cls(folder, method, settings, _original_base(folder, name), told.get("revision"), told.get("task_type"))

    def check(self, method: str, asked: dict[str, Any]) -> None:
        """Compare with a recipe's `peft` section: what the section sets must be what the adapter has.

        Raises:
            ConfigError: Naming every difference.
        """
        if method != self.method:
            raise ConfigError(
                f"is {method}, but the adapter {str(self.folder)!r} is {self.method}.",
                where="peft.method",
                fix=f"Set it to {self.method} to train that adapter further, or merge the adapter into its base: "
                f"{_merge(self.folder)}",
            )
        differing = [
            f"peft.{key} is {value!r}, the adapter has {self.settings.get(key)!r}"
            for key, value in asked.items()
            if value is not None and not _agrees(key, value, self.settings.get(key))
        ]
        if differing:
            raise ConfigError(
                f"{'; '.join(differing)}.",
                where="peft",
                fix=f"Remove these settings: {str(self.folder)!r} has its own. To train another adapter on top of it, "
                f"merge it first: {_merge(self.folder)}",
            )


def _agrees(key: str, asked: Any, own: Any) -> bool:
    if key == "target_modules" and asked == "all-linear":
        return True  # its layers are known with the model: `attach` compares them
    if isinstance(asked, list | tuple) and isinstance(own, list):
        extra = set(map(str, asked)) - set(map(str, own))
        # PEFT adds a classifier's head to the modules it saves
        return not extra if key == "modules_to_save" else set(map(str, asked)) == set(map(str, own))
    return bool(asked == own)


def _original_base(folder: Path, name: str) -> str:
    if (Path(name).name == BASE and not (Path(name) / "config.json").is_file()) or Path(name) == folder / BASE:
        name = str(folder / BASE)  # its own, perhaps moved
    if Path(name).is_dir():
        links = (Path(name) / file for file in WEIGHTS)
        found = next((link.readlink().parent for link in links if link.is_symlink() and link.exists()), None)
        return str(found if found and (found / "config.json").is_file() else Path(name).resolve())
    if Path(name).is_absolute() or not name:
        if any((folder / BASE / file).exists() for file in WEIGHTS):
            return str(folder / BASE)
        raise ConfigError(
            f"the base of the adapter {str(folder)!r} is not there: {name or 'its adapter_config.json names none'}.",
            where="model.path",
            fix=f"Set base_model_name_or_path in {CONFIG} to the base's folder or hub name.",
        )
    return name


def _merge(folder: Path) -> str:
    return f"onecurve checkpoint convert {folder} FOLDER --merge"
