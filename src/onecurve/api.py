"""What Python code and notebooks call: `train` and `predict`."""

import codecs
import json
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onecurve.errors import ConfigError, DataError, TrainingError, UserError

_POLL_SECONDS = 0.1
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Result:
    """A run that has ended: finished, or stopped to be gone on with."""

    output_dir: Path
    """The run directory; `output_dir / "model"` is the trained model once `status["status"]` is done."""
    status: dict[str, Any]
    """What status.json says: `status` (done or stopped), `step`, `exit_code`, `reason`."""
    scores: dict[str, Any]
    """`eval/METRIC` and `test/METRIC` of the weights in `model/`; of a stopped run, of its latest evaluation."""


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    *,
    launch: str | None = None,
    num_processes: int | None = None,
    **overrides: Any,
) -> Result:
    """Train in processes of their own, as `onecurve train` does; what they print is printed here.

    Relative paths count from the working directory. An interrupt is passed on: the run saves, then KeyboardInterrupt is
    raised; called again, the run goes on.

    Args:
        recipe: A YAML file, or its contents.
        launch: A file of `accelerate_configs/` (ddp, zero2, ...), or a path; absent: one process.
        num_processes: Ranks, in place of the launch file's.
        **overrides: Sections or whole keys: `optim={"lr": 1e-3}, seed=1`; dotted ones as `**{"optim.lr": 1e-3}`.

    Returns:
        The run's directory, status and scores.

    Raises:
        UserError: A mistake in the recipe, the data or the launch, before any weights are loaded.
        TrainingError: Training failed; the message says what to do.
        RuntimeError: A bug; what was printed says more.
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
    if status.get("exit_code") != exit_code:  # an earlier launch's: this one was interrupted before it began
        status = {"status": "stopped", "step": 0, "exit_code": exit_code, "reason": message}
    return Result(directory.path, status, _scores(directory.metrics))


def predict(
    model: str | os.PathLike[str],
    inputs: Iterable[str | Mapping[str, Any]],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 64,
) -> list[dict[str, Any]]:
    """Label or continue texts with a trained model, on the CPU in float32.

    Args:
        model: A run's `model/` folder.
        inputs: Texts, or rows with `text` and, for pairs, `text_pair`.
        batch_size: Texts that are labelled at a time; continued ones are so one by one.
        max_new_tokens: How far a language model continues.

    Returns:
        A row per input: `label` and `probability`; `labels`, a probability each, where several may hold; `value` of a
        regression; or `text`, the continuation.

    Raises:
        UserError: No model folder, or an input that is no text.
    """
    from onecurve.cli.predict import _continue, load_trained
    from onecurve.machine.log_noise import hush_transformers

    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{str(folder)!r} is no model folder: it has no config.json.")
    rows = [_input_row(number, given) for number, given in enumerate(inputs)]
    hush_transformers()
    from argparse import Namespace

    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    classifies = any("SequenceClassification" in name for name in config.architectures or [])
    trained = load_trained(folder, config, classifies).eval()
    if not classifies:
        limit = Namespace(max_new_tokens=max_new_tokens)
        return [{"text": _continue(trained, tokenizer, row[0], limit)} for row in rows]
    remaining = iter(rows)
    size = batch_size if tokenizer.pad_token else 1
    batches = iter(lambda: list(islice(remaining, size)), [])
    return [answer for batch in batches for answer in _label(trained, tokenizer, batch)]


def _recipe_file(recipe: str | os.PathLike[str] | Mapping[str, Any], scratch: Path) -> str:
    if not isinstance(recipe, Mapping):
        return os.fspath(recipe)
    path = scratch / "recipe.yaml"
    path.write_text(_yaml(recipe), encoding="utf-8")  # JSON is YAML
    return str(path)


def _words(overrides: Mapping[str, Any]) -> Iterator[str]:
    """Yield overrides as the command line has them; a section given as a map changes the keys it names."""
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
        f"a recipe cannot hold {value!r}, a {type(value).__name__}.", fix="Use text, numbers, lists, maps."
    )


def _run(argv: list[str], file: Any, scratch: Path) -> tuple[int, str]:
    """Launch, print what the ranks print, and return the exit code and why it is not 0."""
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
    for event in events:
        if event["event"] in ("eval", "test") and event["step"] <= last:
            scores |= {f"{event['event']}/{k}": v for k, v in event.items() if k not in ("event", "step", "time")}
    return scores


def _input_row(number: int, given: Any) -> tuple[str, str | None]:
    row = {"text": given} if isinstance(given, str) else given
    text, pair = (row.get(name) for name in ("text", "text_pair")) if isinstance(row, Mapping) else (None, None)
    if not isinstance(text, str) or not (pair is None or isinstance(pair, str)):
        raise DataError(
            f"must be a text, or a row with text and maybe text_pair; got {given!r}.", where=f"input {number}"
        )
    return text, pair


def _label(model: Any, tokenizer: Any, rows: Sequence[tuple[str, str | None]]) -> Iterator[dict[str, Any]]:
    import torch

    texts = [text if pair is None else (text, pair) for text, pair in rows]
    with torch.no_grad():
        logits = model(**tokenizer(texts, truncation=True, padding=len(texts) > 1, return_tensors="pt")).logits
    names, kind = model.config.id2label, model.config.problem_type
    for row in logits:
        if kind == "regression":
            yield {"value": row.item()}
        elif kind == "multi_label_classification":
            yield {"labels": {names[i]: p for i, p in enumerate(row.sigmoid().tolist())}}
        else:
            best = int(row.argmax())
            yield {"label": names[best], "probability": float(row.softmax(-1)[best])}
