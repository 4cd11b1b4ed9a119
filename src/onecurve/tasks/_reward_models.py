"""The reward models that a recipe names among its rewards: told from functions, and checked before weights load."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from onecurve.content.completions import Completion
from onecurve.errors import ConfigError
from onecurve.tasks._other_model import check_folder, read_part
from onecurve.tasks._rewards import WHERE
from onecurve.tasks.base import OtherModel, Row

_FORMS = "my_file.py:NAME or package.module:NAME for a function, the folder or hub name of a model for a reward model"


@dataclass(frozen=True)
class RewardModel:
    """A classifier of one output, as `reward` trains it: what it says of prompt and completion is the reward."""

    source: str
    """As the recipe names it."""
    columns: ClassVar[Mapping[str, bool]] = {"system": False, "tools": False}
    """Columns of the data that it reads beside the prompt -> whether it needs them."""
    other: OtherModel = field(init=False, compare=False)

    def __post_init__(self) -> None:
        path = Path(self.source).expanduser()
        inner = path / "model"
        is_run = not _is_model(path) and _is_model(inner)
        object.__setattr__(self, "other", OtherModel(str(inner) if is_run else self.source, None, WHERE))

    @property
    def name(self) -> str:
        """What metrics call it: the last part of its path, of a run's model/ folder the run's."""
        path = Path(self.source)
        return path.parent.name if path.name == "model" and path.parent.name else path.name

    @property
    def base(self) -> OtherModel | None:
        """The model below it, where it is an adapter."""
        path = Path(self.other.path).expanduser() / "adapter_config.json"
        if not path.is_file():
            return None
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return OtherModel(str(told["base_model_name_or_path"]), told.get("revision"), WHERE)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"'{path}' cannot be read, or names no base.", where=WHERE) from None

    def check(self) -> None:
        """Check what can be known before its weights load.

        Raises:
            ConfigError: It is not there, or no model of one output.
        """
        from transformers import AutoConfig

        path = Path(self.source).expanduser()
        if "/" not in self.source and not path.is_dir():
            raise ConfigError(
                f"{self.source!r} is neither a function nor a model.", where=WHERE, fix=f"Write {_FORMS}."
            )
        if base := self.base:  # how many outputs the adapter's own head has, its weights tell
            read_part(AutoConfig, base, "config.json")
            return
        check_folder(self.other)
        config = read_part(AutoConfig, self.other, "config.json")
        check_outputs(self.source, config.num_labels)


def check_outputs(source: str, number: int) -> None:
    """Raise `ConfigError` where a model has another number of outputs than one."""
    if number != 1:
        raise ConfigError(
            f"{source!r} has {number} outputs; a reward model has one, the score of an answer.",
            where=WHERE,
            fix="Train one with task.name reward, or call the model in a function of your own.",
        )


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def is_reward_model(source: str) -> bool:
    """Whether a recipe's reward is a model; a function has a colon, and a file without one is a mistake."""
    return ":" not in source and not source.endswith(".py")


def judged_rows(asked: Sequence[Mapping[str, Any]], completions: Sequence[Completion]) -> list[Row]:
    """Return each prompt with its completion, as the task `reward` reads an answer."""
    read = ("prompt", *RewardModel.columns)
    return [
        {name: row[name] for name in read if row.get(name) is not None} | {"chosen": completion.text}
        for row, completion in zip(asked, completions, strict=True)
    ]
