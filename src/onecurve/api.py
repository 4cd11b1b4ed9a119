"""The Python API: `train`, `predict` and `load`."""

import codecs
import json
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onecurve.errors import ConfigError, TrainingError, UserError

if TYPE_CHECKING:
    from onecurve.model.trained import Trained

_POLL_SECONDS = 0.1
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Result:
    """The result of a run that finished, or stopped and can be resumed."""

    output_dir: Path
    """The run directory; `output_dir / "model"` is the trained model once `status["status"]` is done."""
    status: dict[str, Any]
    """The content of status.json: `status` (done or stopped), `step`, `exit_code`, `reason`."""
    scores: dict[str, Any]
    """`eval/METRIC` and `test/METRIC` of the weights in `model/`; for a stopped run, of its latest evaluation."""


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    *,
    launch: str | None = None,
    num_processes: int | None = None,
    **overrides: Any,
) -> Result:
    """Train in separate processes, as `onecurve train` does; their output is printed here.

    Relative paths start at the working directory. An interrupt is passed on: the run saves, then KeyboardInterrupt is
    raised. Call again to resume the run.

    Args:
        recipe: A YAML file, or its contents.
        launch: A file of `accelerate_configs/` (ddp, zero2, ...), or a path; default: one process.
        num_processes: Number of ranks; overrides the launch file.
        **overrides: Sections or whole keys: `optim={"lr": 1e-3}, seed=1`; dotted ones as `**{"optim.lr": 1e-3}`.

    Returns:
        The run's directory, status and scores.

    Raises:
        UserError: A mistake in the recipe, the data or the launch, before any weights are loaded.
        TrainingError: Training failed; the message says what to do.
        RuntimeError: A bug; see the printed traceback.
    """
    from onecurve.config import load_recipe
    from onecurve.launching import find_launch_file
    from onecurve.run.directory import RunDirectory

    with TemporaryDirectory(prefix="onecurve-") as name:
        scratch = Path(name)
        argv = [_recipe_file(recipe, scratch), *_words(overrides)]
        directory = RunDirectory(Path(load_recipe(argv)[0].output_dir))
        exit_code, message = _run(argv, find_launch_file(launch, num_processes), scratch)
    if exit_code == UserError.exit_code:
        raise UserError(message)
    if exit_code == TrainingError.exit_code or exit_code > 128:
        raise TrainingError(message)
    if exit_code == 1:
        raise RuntimeError(f"train.py ended with a bug; its traceback was printed. {message}".rstrip())
    status = directory.status()
    if status.get("exit_code") != exit_code:  # of an earlier launch: this one was interrupted before it began
        status = {"status": "stopped", "step": 0, "exit_code": exit_code, "reason": message}
    return Result(directory.path, status, _scores(directory.metrics))


def predict(
    model: str | os.PathLike[str],
    inputs: Iterable[str | Mapping[str, Any]],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    task: str | None = None,
    trust_remote_code: bool = False,
) -> list[dict[str, Any]]:
    """Predict with a trained model, which is loaded for this call; `load` keeps it.

    Args:
        model: A run's directory or its `model/` folder.
        inputs: Texts, or rows with the task's columns; labels are optional.
        batch_size: Rows per forward pass.
        max_new_tokens: Maximum number of generated tokens.
        task: Its task, where the folder has no task.json and several fit it.
        trust_remote_code: Run Python code that comes with the model or its tokenizer.

    Returns:
        One prediction per input, by task: `label`, `probability` and `probabilities`; `value`; `tags` and `entities`;
        or `text`. `error` if the input is invalid.

    Raises:
        UserError: No model folder, or one whose task is not known.
    """
    loaded = load(model, task=task, trust_remote_code=trust_remote_code)
    return loaded.predict(inputs, batch_size=batch_size, max_new_tokens=max_new_tokens)


@dataclass(frozen=True)
class Model:
    """A trained model, loaded once and asked any number of times; `load` returns one."""

    trained: "Trained"

    def predict(
        self, inputs: Iterable[str | Mapping[str, Any]], *, batch_size: int = 8, max_new_tokens: int = 64
    ) -> list[dict[str, Any]]:
        """Return one prediction per input, as `onecurve.predict` does.

        Args:
            inputs: Texts, or rows with the task's columns; labels are optional.
            batch_size: Rows per forward pass.
            max_new_tokens: Maximum number of generated tokens.
        """
        from onecurve.prediction.answers import answer
        from onecurve.prediction.rows import rows_of_inputs

        return list(answer(self.trained, rows_of_inputs(self.trained, inputs), batch_size, max_new_tokens))


def load(model: str | os.PathLike[str], *, task: str | None = None, trust_remote_code: bool = False) -> Model:
    """Load a trained model, onto the accelerator if there is one, in the precision that it is stored in.

    Args:
        model: A run's directory or its `model/` folder.
        task: Its task, where the folder has no task.json and several fit it.
        trust_remote_code: Run Python code that comes with the model or its tokenizer.

    Raises:
        UserError: No model folder, or one whose task is not known or has no answers to give.
    """
    from onecurve.machine.log_noise import hush_transformers

    hush_transformers()
    from onecurve.model.trained import load_trained
    from onecurve.prediction.answers import check_askable

    trained = load_trained(Path(model), task, trust_remote_code)
    check_askable(trained.task, str(model))
    return Model(trained)


def _recipe_file(recipe: str | os.PathLike[str] | Mapping[str, Any], scratch: Path) -> str:
    if not isinstance(recipe, Mapping):
        return os.fspath(recipe)
    path = scratch / "recipe.yaml"
    path.write_text(_yaml(recipe), encoding="utf-8")  # JSON is YAML
    return str(path)


def _words(overrides: Mapping[str, Any]) -> Iterator[str]:
    """Yield overrides in command-line form; a section given as a map changes only the keys in it."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and "." not in key:
            yield from (f"--{key}.{name}={_yaml(part)}" for name, part in value.items())
        else:
            yield f"--{key}={_yaml(value)}"


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ConfigError(
        f"a recipe cannot hold {value!r} ({type(value).__name__}).", fix="Use text, numbers, lists or maps."
    )


def _run(argv: list[str], file: Any, scratch: Path) -> tuple[int, str]:
    """Launch, print the ranks' output, and return the exit code and the reason if it is not 0."""
    from onecurve.launching import Launch
    from onecurve.run.lifecycle import EX_TEMPFAIL, MESSAGE_FILE

    message, interrupted = scratch / "message", False
    reading, writing = os.pipe()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def show(seconds: float = _POLL_SECONDS) -> None:
        while select.select([reading], [], [], seconds)[0]:
            sys.stdout.write(decoder.decode(os.read(reading, _CHUNK)))
            sys.stdout.flush()
            seconds = 0

    try:
        with Launch(argv, file, writing, {MESSAGE_FILE: str(message), "PYTHONUNBUFFERED": "1"}) as launch:
            launch.start()
            while True:
                try:
                    exit_code = launch.wait(show)
                    break
                except KeyboardInterrupt:
                    interrupted = True
                    launch.send(signal.SIGINT)
            show(0)
    finally:
        os.close(reading)
        os.close(writing)
    if interrupted and exit_code in (0, EX_TEMPFAIL):
        raise KeyboardInterrupt
    told = message.read_text(encoding="utf-8") if message.is_file() else launch.reason(exit_code)
    return exit_code, told


def _scores(metrics: Path) -> dict[str, Any]:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    events = [json.loads(line) for line in lines]
    last = next((event["step"] for event in reversed(events) if event["event"] == "end"), float("inf"))
    scores: dict[str, Any] = {}
    names = {"eval": "eval", "average": "eval", "test": "test"}  # of an average of best steps: it is the model's
    for event in events:
        if (name := names.get(event["event"])) and event["step"] <= last:
            scores |= {f"{name}/{k}": v for k, v in event.items() if k not in ("event", "step", "time")}
    return scores
