"""Checks a run before anything heavy is imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecurve import user_code
from onecurve.config import Recipe, check_effects, closest, dump_recipe, load_recipe, resolve
from onecurve.errors import ConfigError, NothingToDo
from onecurve.machine.distributed import asked_world_size
from onecurve.machine.optional_packages import keep_out_unused, require, require_trackers
from onecurve.model.beside import following
from onecurve.model.identity import other_identity
from onecurve.optim import check_optim
from onecurve.regularization.checks import check_regularization
from onecurve.regularization.text_augmentation import build_text_augmentation
from onecurve.run.directory import RunDirectory
from onecurve.strategies import check_strategy
from onecurve.tasks import load_task, locate_task, resolve_task, unread_keys
from onecurve.tasks.base import Follows, Pools, Rewords, RollsOut, Task

_OWN_METRIC = "If the task's `metrics` returns it, add it to the task's `metric_names`."


@dataclass(frozen=True)
class Checked:
    """A valid recipe, and the values derived from it."""

    recipe: Recipe
    task: Task
    directory: RunDirectory
    resolved: dict[str, Any]
    """Every value of the recipe, including the settings of the task and the optimizer."""
    config: str
    """The same as YAML, each value with its source."""


def read(argv: list[str]) -> Checked:
    """Read the recipe and check it against its schema, task and optimizer, independent of the launch.

    Raises:
        UserError: The first mistake found.
    """
    recipe, sources = load_recipe(argv)
    folder = Path(argv[0]).parent
    regularization = recipe.regularization.located(lambda name: user_code.locate(name, folder))
    recipe = recipe.model_copy(update={"task": locate_task(recipe.task, folder), "regularization": regularization})
    task = load_task(recipe.task)
    if isinstance(task, Follows):
        task = following(task, recipe.model)
        sources |= {f"task.{name}": f"{file} of the model" for name, file in task.followed.items()}
    if isinstance(task, Rewords):
        task.augmentation = build_text_augmentation(regularization)
    if isinstance(task, RollsOut):
        task.check_rollouts(recipe, other_identity)
    _check_metric(recipe, task)
    if isinstance(task, Pools) and recipe.train.compile:
        raise ConfigError(
            f"{recipe.task.name} computes each step twice, without gradients and with them. Compiled, these are two "
            "graphs, whose dropout need not be the same.",
            where="train.compile",
            fix="Set it to false.",
        )
    owned = {"task": resolve_task(task), "optim": check_optim(recipe.optim)}
    check_effects(recipe, {"task": task.settings}, unread_keys(task, adapted=recipe.peft is not None))
    check_regularization(recipe, task)
    resolved = resolve(recipe, owned)
    if isinstance(task, RollsOut) and task.replay:  # other weights would not have drawn what is replayed
        RunDirectory(Path(task.replay).expanduser()).require_curve(resolved, "task.replay")
    return Checked(recipe, task, RunDirectory(Path(recipe.output_dir)), resolved, dump_recipe(resolved, sources))


def _check_metric(recipe: Recipe, task: Task) -> None:
    asked, sets = recipe.eval.best_metric, recipe.data.names("eval")
    for split in ("eval", "test"):
        of_sets = [f"{name}/{metric}" for name in recipe.data.names(split) for metric in task.metric_names]
        if twice := sorted({*task.metric_names} & {*of_sets}):
            raise ConfigError(
                f"{twice[0]!r} is a metric of this task, and one of a set of this name.",
                where=f"data.{split}",
                fix="Rename the set.",
            )
    of_sets = [f"{name}/{metric}" for name in sets for metric in task.metric_names]
    known = [*task.metric_names, *of_sets]
    if asked is not None and asked not in known:
        names = f"; of one of the sets {', '.join(sets)}: NAME/METRIC, such as {of_sets[-1]}" if sets else ""
        raise ConfigError(
            f"no metric {asked!r}; the metrics of this task are {', '.join(task.metric_names)}{names}.",
            where="eval.best_metric",
            fix=closest(asked, known) or (_OWN_METRIC if ":" in recipe.task.name else ""),
        )


def preflight(argv: list[str]) -> Checked:
    """Read the recipe and check it, the launch and the run directory.

    Raises:
        UserError: The first mistake found.
        NothingToDo: The run is finished.
    """
    checked = read(argv)
    require(checked.task.packages, "task.name", checked.recipe.task.name)
    require_trackers(checked.recipe.tracking.trackers)
    check_strategy(checked.recipe)
    asked_world_size()  # refuses a launch that cannot form one world
    try:
        checked.directory.check(checked.recipe.train.resume, checked.resolved)
    except NothingToDo as done:
        if written := checked.directory.rewritten(_named(checked.recipe.data.train)):
            raise _of_other_data(checked, written, done) from None
        raise
    if isinstance(checked.task, RollsOut) and checked.task.server:
        _check_server(checked.task.server)
    return checked


def _check_server(address: str) -> None:
    """Raise `ConfigError` where no model is served there."""
    from onecurve.machine.vllm import ServerError, VllmServer

    try:
        served = VllmServer(address).models()
    except ServerError as error:
        raise ConfigError(f"{address}: {error}.", where="task.server", fix="Start vllm serve first.") from None
    if not served:
        raise ConfigError(f"{address} serves no model.", where="task.server")


def _of_other_data(checked: Checked, written: str, done: NothingToDo) -> Exception:
    """Return what to end with where data of a finished run were `written` since: are its examples still the same?

    Raises:
        UserError: They cannot be read.
    """
    before = checked.directory.fingerprint
    if not before:
        return NothingToDo(
            f"{done} {written} was written since it was read, and no checkpoint tells whether it holds the same data."
        )
    from onecurve.data import load_data
    from onecurve.model.reading import Reading

    recipe = checked.recipe
    data = recipe.data.model_copy(update={"workers": 0, "stage_to": None})
    now = load_data(data, checked.task, Reading.of(recipe, checked.task), recipe.seed).fingerprint
    if now == before:
        return done
    return ConfigError(
        f"{str(checked.directory.path)!r} holds a finished run on other data: {written} was written since, and the "
        f"fingerprint of the examples was {before} and is {now}; nothing is trained.",
        where="data.train",
        fix="Choose another output_dir, or set train.resume to never to replace the run.",
    )


def _named(spec: Any) -> Iterator[str]:
    """Yield the names of training data, in whatever form the recipe has them."""
    if isinstance(spec, str):
        yield spec
    elif isinstance(spec, (list, tuple)):
        yield from spec
    elif isinstance(spec, dict):
        for source in spec.values():
            yield from _named(getattr(source, "path", source))


@contextmanager
def heavy_imports(checked: Checked) -> Iterator[None]:
    """Import the slow packages, without those that this run does not need, and 20% faster.

    Imported modules are never freed, so garbage collection is off meanwhile.
    """
    gc.disable()
    try:
        keep_out_unused(checked.recipe, checked.task.packages)
        yield
    finally:
        gc.freeze()  # nor later
        gc.enable()
