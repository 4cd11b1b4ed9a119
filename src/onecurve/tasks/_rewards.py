"""The user's reward functions: found, checked, and called with the completions of a step."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from reprlib import repr as short
from typing import Any

from onecurve import user_code
from onecurve.content.completions import RewardError
from onecurve.errors import ConfigError

WHERE = "task.rewards"
_GIVEN = ("prompts", "completions", "completion_ids")
"""What every function may ask for beside columns of the data, by TRL's names; lists, of which each has one entry a
completion."""
_SINGULAR = {"prompt": "prompts", "completion": "completions", "completion_id": "completion_ids"}


@dataclass(frozen=True)
class RewardFunction:
    """One function of the recipe's."""

    source: str
    """As the recipe names it."""
    call: Callable[..., Any]
    columns: Mapping[str, bool]
    """Columns of the data that it takes -> whether it needs them."""
    given: frozenset[str]
    takes_all: bool
    """Whether it takes whatever other columns there are."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        return self.source.rpartition(":")[2]

    @classmethod
    def load(cls, source: str) -> "RewardFunction":
        """Import a function.

        Raises:
            ConfigError: There is none of this name, or it cannot be called as a reward function is.
        """
        call = user_code.load(source, WHERE)
        if not callable(call) or isinstance(call, type):
            raise ConfigError(f"{source} is not a function: {short(call)}.", where=WHERE)
        if inspect.iscoroutinefunction(call):
            raise ConfigError(f"{source} is async; a reward function returns its list at once.", where=WHERE)
        parameters = inspect.signature(call).parameters.values()
        named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
        if any(one.kind is one.POSITIONAL_ONLY for one in parameters):
            raise ConfigError(f"{source} has parameters that cannot be given by name.", where=WHERE)
        for one in named:
            if right := _SINGULAR.get(one.name):
                raise ConfigError(
                    f"{source} has a parameter {one.name!r}: a reward function gets lists, with an entry for each "
                    f"completion, and returns a list of numbers.",
                    where=WHERE,
                    fix=f"Call it {right}.",
                )
        given = frozenset(_GIVEN if takes_all else (one.name for one in named if one.name in _GIVEN))
        columns = {one.name: one.default is one.empty for one in named if one.name not in _GIVEN}
        return cls(source, call, columns, given, takes_all)

    def __call__(self, told: Mapping[str, Sequence[Any]]) -> list[float]:
        """Return the reward of each completion.

        Args:
            told: What functions may ask for, by name; lists.

        Raises:
            RewardError: It raised an exception, or returned something else than finite numbers, one for each.
        """
        count = len(told["completions"])
        try:
            found = self._called(told)
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            raise RewardError(f"raised {_described(error)}", self._culprit(told, count)) from None
        try:
            rewards = list(found)
        except TypeError:
            raise RewardError(f"returned {short(found)}, which is no list") from None
        if len(rewards) != count:
            raise RewardError(f"returned {len(rewards)} rewards for {count} completions")
        for place, reward in enumerate(rewards):
            try:
                rewards[place] = float(reward)
            except (TypeError, ValueError):
                raise RewardError(f"returned {short(reward)}, which is no number", place) from None
            if not isfinite(rewards[place]):
                raise RewardError(f"returned {rewards[place]}", place)
        return rewards

    def _called(self, told: Mapping[str, Sequence[Any]]) -> Any:
        return self.call(**{n: list(v) for n, v in told.items() if self.takes_all or n in {*self.given, *self.columns}})

    def _culprit(self, told: Mapping[str, Sequence[Any]], count: int) -> int | None:
        """Return the first completion that it fails on alone."""
        for place in range(count):
            try:
                self._called({name: values[place : place + 1] for name, values in told.items()})
            except Exception:  # noqa: BLE001  as above
                return place
        return None


def load_rewards(sources: Sequence[str]) -> list[RewardFunction]:
    """Import the functions that a recipe names.

    Raises:
        ConfigError: One cannot be had, or two have one name.
    """
    functions = [RewardFunction.load(source) for source in sources]
    names = [function.name for function in functions]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two functions are called {twice[0]!r}, and metrics could not tell them apart.", where=WHERE)
    return functions


def code_hash(functions: Sequence[RewardFunction]) -> str:
    """Return a hash of the functions' code, as `user_code.source_hash` makes it."""
    digest = blake2b(digest_size=16)
    for function in functions:
        code: Any = function.call if inspect.isfunction(function.call) else type(function.call)
        digest.update(user_code.source_hash(code).encode())
    return digest.hexdigest()


def _described(error: Exception) -> str:
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    place = f" ({Path(last.tb_frame.f_code.co_filename).name}, line {last.tb_lineno})" if last else ""
    return f"{type(error).__name__}: {error}{place}"
