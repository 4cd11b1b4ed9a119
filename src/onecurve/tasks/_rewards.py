"""The user's reward functions: found, checked, and called with the completions of a step."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from reprlib import repr as short
from time import monotonic
from typing import Any

from onecurve import user_code
from onecurve.content.completions import Completion, RewardError
from onecurve.errors import ConfigError

WHERE = "task.rewards"
_GIVEN = ("prompts", "completions", "completion_ids")
"""What every function may ask for beside columns of the data, by TRL's names; lists, of which each has one entry a
completion."""
_SECONDS_TO_BLAME = 10.0
"""How long the completion is looked for that a function fails on: it may be slow."""
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
            rewards = _listed(self._called(told))
        except RewardError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001  the user's code may raise anything
            raise RewardError(f"raised {_described(error)}", self._culprit(told, count)) from None
        if len(rewards) != count:
            raise RewardError(f"returned {len(rewards)} rewards for {count} completions")
        return [_number(reward, place) for place, reward in enumerate(rewards)]

    def _called(self, told: Mapping[str, Sequence[Any]]) -> Any:
        """Call it with copies: what it changes in them is neither learnt nor seen by other functions."""
        asked = {name: values for name, values in told.items() if self._takes(name, values)}
        return self.call(**{name: deepcopy(list(values)) for name, values in asked.items()})

    def _takes(self, name: str, values: Sequence[Any]) -> bool:
        if name in self.given or self.columns.get(name):
            return True
        # Where no row has a value, the function's own default holds
        return (self.takes_all or name in self.columns) and any(value is not None for value in values)

    def _culprit(self, told: Mapping[str, Sequence[Any]], count: int) -> int | None:
        """Return the first completion that it fails on alone; None where that is not found soon."""
        until = monotonic() + _SECONDS_TO_BLAME
        for place in range(count):
            if monotonic() > until:
                break
            try:
                _listed(self._called({name: values[place : place + 1] for name, values in told.items()}))
            except (Exception, SystemExit):  # noqa: BLE001  as above
                return place
        return None


def _listed(found: Any) -> list[Any]:
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping | Set):
        raise RewardError(f"returned {short(found)}, which is no list")
    return list(found)


def _number(reward: Any, place: int) -> float:
    try:
        number = None if isinstance(reward, str | bytes) else float(reward)
    except Exception:  # noqa: BLE001  a tensor of several numbers, or one too large, each raises its own
        number = None
    if number is None:
        raise RewardError(f"returned {short(reward)}, which is no number", place)
    if not isfinite(number):
        raise RewardError(f"returned {number}", place)
    return number


def rewards_of(
    functions: Sequence[RewardFunction], rows: Sequence[Mapping[str, Any]], completions: Sequence[Completion]
) -> list[dict[str, float]]:
    """Return each completion's reward by each function.

    Args:
        functions: To call.
        rows: What they may ask of each completion's row: its `prompt` and columns.
        completions: All of a step.

    Raises:
        RewardError: One failed.
    """
    told: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in {n: 0 for row in rows for n in row}}
    told["prompts"] = told.pop("prompt", [None] * len(rows))
    told["completions"] = [
        one.text if isinstance(prompt, str) else [{"role": "assistant", "content": one.text}]
        for prompt, one in zip(told["prompts"], completions, strict=True)
    ]
    told["completion_ids"] = [one.ids for one in completions]
    found: dict[str, list[float]] = {}
    if not functions:
        return [{} for _ in completions]
    for function in functions:
        try:
            found[function.name] = function(told)
        except RewardError as error:
            raise RewardError(f"{function.source} {error.what}", error.place) from None
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def check_names(names: Sequence[str]) -> None:
    """Raise `ConfigError` where two rewards have one name."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two rewards are called {twice[0]!r}, and metrics could not tell them apart.", where=WHERE)


def columns_read(rewards: Iterable[Any]) -> dict[str, str]:
    """Return the columns of the data that rewards read beside the prompt's -> what of each a user is told.

    Args:
        rewards: Each with a `name` and `columns`.
    """
    needed: dict[str, str] = {}
    for reward in rewards:
        for name, is_needed in reward.columns.items():
            if name not in ("prompt", "system", "tools"):
                needed[name if is_needed else f"{name}?"] = f"what the reward function {reward.name} reads"
    return {name: what for name, what in needed.items() if name.removesuffix("?") == name or name[:-1] not in needed}


def code_hash(functions: Sequence[RewardFunction], models: Sequence[str] = ()) -> str:
    """Return a hash of the functions' code, as `user_code.source_hash` makes it, and of the reward models' weights.

    Args:
        functions: The functions.
        models: What tells each model's weights from others.
    """
    digest = blake2b("".join(models).encode(), digest_size=16)
    for function in functions:
        code: Any = function.call
        while isinstance(code, partial) or inspect.ismethod(code):
            code = code.func if isinstance(code, partial) else code.__func__
        if not inspect.isfunction(code):
            code = type(code)
        digest.update(user_code.source_hash(code).encode())
    return digest.hexdigest()


def _described(error: BaseException) -> str:
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    place = f" ({Path(last.tb_frame.f_code.co_filename).name}, line {last.tb_lineno})" if last else ""
    return f"{type(error).__name__}: {error}{place}"
